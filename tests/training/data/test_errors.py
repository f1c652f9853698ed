"""Errors of the user's code keep their class, message and traceback, in whatever process."""

import json
import traceback

import pytest
import torch
from helpers.runs import fit, trainer_of
from helpers.training import DATA, LeastSquares, make_linear, run
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from tinyvae.errors import DataWorkerError


class Refusal(Exception):
    """Error with a constructor that needs more than a text."""

    def __init__(self, code, detail):
        super().__init__(f"refused with {code}")
        self.code, self.detail = code, detail

    def __reduce__(self):
        return type(self), (self.code, self.detail)


class Silent(Exception):
    """Error whose constructor drops its argument, and that cannot be sent to another process."""

    def __init__(self, response):
        super().__init__("planted" if isinstance(response, int) else "nothing")


class Holder(Exception):
    """Error that cannot be sent to another process because of what it holds."""

    def __init__(self, text):
        super().__init__(text)
        self.function = lambda: text


class Messenger(Exception):
    """Error with the attribute that torch takes for an argument of the constructor."""

    message = "planted"

    def __str__(self):
        return "planted"


def planted_here(kind):
    """Raise an error of a kind. Tracebacks name this function."""
    match kind:
        case "json":
            json.loads("{")
        case "unicode":
            b"\xff".decode()
        case "refusal":
            raise Refusal(7, "planted")
        case "silent":
            raise Silent(3)
        case "holder":
            raise Holder("planted")
        case "messenger":
            raise Messenger
        case "key":
            raise KeyError("planted")
        case "type":
            raise TypeError("planted")
        case "connection":
            raise ConnectionResetError("planted")
        case "stop":
            raise StopIteration("planted")
        case "nested stop":
            next(iter(()))


KINDS = {
    "json": (json.JSONDecodeError, "Expecting property name"),
    "unicode": (UnicodeDecodeError, "can't decode byte 0xff"),
    "refusal": (Refusal, "refused with 7"),
    "silent": (Silent, "planted"),
    "holder": (Holder, "planted"),
    "messenger": (Messenger, "planted"),
    "key": (KeyError, "planted"),
    "type": (TypeError, "planted"),
    "connection": (ConnectionResetError, "planted"),
}
UNSENDABLE = ["silent", "holder"]
STOPS = ["stop", "nested stop"]
FEW = ["json", "silent", "holder", "messenger", "connection"]  # processes take time to start


class Items(Dataset):
    """Rows of which one cannot be read."""

    def __init__(self, kind, index=20):
        self.kind, self.index = kind, index

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        if index == self.index:
            planted_here(self.kind)
        return DATA[index]


class Stream(IterableDataset):
    """Stream of which one row cannot be read."""

    def __init__(self, kind):
        self.kind = kind

    def __iter__(self):
        for index, row in enumerate(DATA):
            if index == 20:
                planted_here(self.kind)
            yield row


class Collate:
    """A collate_fn that cannot put together one batch."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, items):
        batch = torch.stack(items)
        if torch.equal(batch[0], DATA[16]):
            planted_here(self.kind)
        return batch


class Order(Sampler):
    """Sampler that fails."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return len(DATA)

    def __iter__(self):
        for index in range(len(DATA)):
            if index == 20:
                planted_here(self.kind)
            yield index


def fails_late(kind):
    """Return a function of a batch that fails in the third one."""
    calls = []

    def function(x, generator=None):
        calls.append(x)
        if len(calls) == 3:
            planted_here(kind)
        return x

    return {"batch": function}


def transform(kind):
    function = fails_late(kind)["batch"]
    return {"transform": lambda x, _generator: function(x)}


class Plain(Items):
    """Rows that can all be read."""

    def __init__(self):
        super().__init__(None, None)


# Data and options of ``fit``, by the place where the error is raised.
PLACES = {
    "item": lambda kind: (Items(kind), {}),
    "item, workers": lambda kind: (Items(kind), {"workers": 2}),
    "stream": lambda kind: (Stream(kind), {}),
    "stream, workers": lambda kind: (Stream(kind), {"workers": 1}),
    "loader": lambda kind: (DataLoader(Items(kind), 8), {}),
    "loader, workers": lambda kind: (DataLoader(Items(kind), 8, num_workers=1), {}),
    "loader, persistent": lambda kind: (
        DataLoader(Items(kind), 8, num_workers=1, persistent_workers=True),
        {},
    ),
    "collate": lambda kind: (DataLoader(Plain(), 8, collate_fn=Collate(kind)), {}),
    "collate, workers": lambda kind: (
        DataLoader(Plain(), 8, collate_fn=Collate(kind), num_workers=1),
        {},
    ),
    "collate of a stream": lambda kind: (DataLoader(Claim(), 8, collate_fn=Collate(kind)), {}),
    "collate of a stream, workers": lambda kind: (
        DataLoader(Claim(), 8, collate_fn=Collate(kind), num_workers=1),
        {},
    ),
    "sampler": lambda kind: (DataLoader(Plain(), 8, sampler=Order(kind)), {}),
    "sampler, workers": lambda kind: (
        DataLoader(Plain(), 8, sampler=Order(kind), num_workers=1),
        {},
    ),
    "batch": lambda kind: (DATA, fails_late(kind)),
    "batch of a Dataset": lambda kind: (Plain(), fails_late(kind)),
    "transform": lambda kind: (DATA, transform(kind)),
    "transform of a loader": lambda kind: (DataLoader(Plain(), 8), transform(kind)),
}


class Claim(IterableDataset):
    """Stream of rows that can all be read."""

    def __iter__(self):
        return iter(DATA)


def caught_from(place, kind, role="training"):
    data, options = PLACES[place](kind)
    train, validation = (data, None) if role == "training" else (Plain(), data)
    if options.keys() & {"batch", "transform"}:
        validation = None
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        run(make_linear(), LeastSquares(), train, validation, epochs=1, fit=options)
    return caught.value, "".join(traceback.format_exception(caught.value))


def place_of(place):
    """Return the text that names the batch."""
    # The order of a Dataset is shuffled. All tensors are read before the first step, and processes
    # need a sampler before they read.
    numbers = {"item": 4, "item, workers": 4, "batch": 2, "transform": 2, "sampler, workers": 1}
    return f"batch {numbers.get(place, 3)} of epoch 1 of the training data"


def is_of_torch(place):
    """Return True where torch sends the error of another process, as text."""
    return "workers" in place and not place.startswith(("item", "sampler"))


@pytest.mark.parametrize("place", PLACES)
def test_errors_of_data_keep_class_message_and_traceback(place):
    has_processes = "workers" in place or "persistent" in place
    for kind in FEW if has_processes else KINDS:
        error, message = KINDS[kind]
        value, text = caught_from(place, kind)
        assert error.__name__ in text, kind
        assert message in text, kind
        assert "planted_here" in text, kind
        assert place_of(place) in text, kind
        assert not isinstance(value, DataWorkerError), kind
        if is_of_torch(place):
            assert f"Caught {error.__name__} in DataLoader worker" in str(value), kind
        elif has_processes and not place.startswith("sampler"):
            assert isinstance(value, RuntimeError if kind in UNSENDABLE else error), kind
            assert message in str(value), kind
        else:
            assert type(value) is error, kind
            assert message in str(value), kind


def test_errors_of_validation_data_name_them():
    for place in ("item", "item, workers", "loader, workers"):
        _, text = caught_from(place, "json", "validation")
        assert "JSONDecodeError" in text
        assert "batch 3 of epoch 1 of the validation data" in text


@pytest.mark.parametrize("place", PLACES)
def test_stop_iteration_in_data_is_an_error(place):
    for kind in STOPS[:1] if "workers" in place else STOPS:
        value, text = caught_from(place, kind)
        assert type(value) is RuntimeError, kind
        assert "StopIteration" in text, kind
        assert "planted_here" in text, kind
        assert place_of(place) in text, kind
        if not is_of_torch(place) or place == "loader, workers":
            assert "fit expects StopIteration from iterators at their end only" in str(value), kind


def test_error_of_an_attribute_of_the_data_is_not_rebuilt():
    class Lazy(Plain):
        def __len__(self):
            raise Refusal(7, "planted")

    with pytest.raises(Refusal, match="refused with 7") as caught:
        run(make_linear(), LeastSquares(), Lazy())
    assert caught.value.__notes__ == ["It was raised when fit opened the training data."]


def test_error_of_a_check_is_not_rebuilt():
    class Strict(LeastSquares):
        def check(self, model, batch):
            json.loads("{")

    with pytest.raises(json.JSONDecodeError, match=r"^Expecting property name"):
        run(make_linear(), Strict(), DATA)


def test_connection_error_of_a_callback_is_no_death_of_a_worker(tmp_path):
    trainer = trainer_of(tmp_path)

    def fail(state, output):
        raise ConnectionResetError("planted")

    trainer.callbacks[-1].on_step_end = fail
    with pytest.raises(ConnectionResetError, match="planted"):
        fit(trainer, Plain(), workers=1)
