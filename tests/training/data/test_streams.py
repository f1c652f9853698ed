"""Streams: their share for each process that reads, and their epochs."""

import random

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, get_worker_info

from tinyvae.training.data.factory import open_data
from tinyvae.training.data.sources import BatchTransform


class Numbers(IterableDataset):
    """Numbers in a random order, with noise: nothing in it knows of processes."""

    def __init__(self, n=37):
        self.n = n

    def __iter__(self):
        order = random.sample(range(self.n), self.n)
        for number in order:
            yield torch.tensor([float(number), torch.rand(()).item()])


class OwnShare(Numbers):
    """The same, split by the stream itself, which draws its order before it asks."""

    def __iter__(self):
        order = random.sample(range(self.n), self.n)
        info = get_worker_info()
        for number in order if info is None else order[info.id :: info.num_workers]:
            yield torch.tensor([float(number), torch.rand(()).item()])


class Epochs(Numbers):
    """Numbers that depend on the epoch only."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return (torch.full((4,), 10.0 * self.epoch) for _ in range(self.n))


def rows(data, workers, epoch=0, **options):
    transform = BatchTransform(torch.device("cpu"), torch.float32)
    settings = {"batch_size": 4, "seed": 0, "shuffle": False, "workers": workers, **options}
    source = open_data(data, transform, **settings)
    try:
        return torch.cat([batch.x for batch in source.batches(epoch)])
    finally:
        source.close()


@pytest.mark.parametrize("stream", [Numbers, OwnShare])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_processes_yield_each_item_of_a_stream_once(stream, workers):
    read = rows(stream(), workers)
    assert sorted(read[:, 0].tolist()) == list(range(37))
    assert len(set(read[:, 1].tolist())) == 37
    assert torch.equal(read, rows(stream(), workers))
    assert not torch.equal(read, rows(stream(), workers, epoch=1))


def test_processes_yield_nothing_of_a_stream_that_has_fewer_items():
    assert rows(Numbers(1), 2)[:, 0].tolist() == [0.0]


def test_a_stream_sees_itself_and_its_process_in_get_worker_info():
    class Curious(Numbers):
        def __iter__(self):
            info = get_worker_info()
            yield torch.tensor([float(info.dataset is self), float(info.id)])

    assert rows(Curious(), 2).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_and_loaders_are_told_the_epoch(workers):
    for data in (Epochs(), DataLoader(Epochs(), 4, num_workers=workers)):
        assert rows(data, workers, epoch=3).unique().tolist() == [30.0]


def test_samplers_are_told_the_epoch():
    data = torch.arange(12.0).unsqueeze(1)
    sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True)
    loader = DataLoader(data, 4, sampler=sampler)
    orders = [rows(loader, 0, epoch, shuffle=True)[:, 0].tolist() for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
