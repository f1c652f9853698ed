"""Probe of ``found_inf``, by which fused optimizers skip updates without a wait for the device."""

import torch


def obeys_found_inf(device: torch.device) -> bool:
    """Return True if a fused optimizer makes no update on ``device`` while ``found_inf`` is 1.

    Early versions of torch ignore ``found_inf`` on Apple's devices.
    """
    weight, gradient, moment, square, count, found_inf = torch.ones(6, 1, device=device).unbind()
    torch._fused_adam_(
        [weight],
        [gradient],
        [moment],
        [square],
        [],
        [count],
        amsgrad=False,
        lr=0.1,
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
        found_inf=found_inf,
    )
    return weight.item() == 1
