"""Model cards."""

import json

from tinyvae._version import __version__
from tinyvae.evaluation import Report
from tinyvae.models.base import DecoderModel
from tinyvae.models.summary import describe

CARD = """\
---
library_name: tinyvae
license: {license_id}
tags:
- variational-autoencoder
- {model}
---

# {name}

A `{model}` of [tinyvae](https://github.com/tinyvae/tinyvae) {version}, a variational autoencoder.

```python
from tinyvae.hub import from_pretrained

model = from_pretrained({name_code})
```

`model.encode(x)` returns q(z given x), `model.decode(z)` p(x given z), and `model.sample(n)` new
data.

## Data

{data}

## Model

```text
{summary}
```

## Evaluation

{evaluation}

## License

{license}
"""


def model_card(
    model: DecoderModel,
    name: str,
    *,
    data: str | None = None,
    license: str | None = None,  # noqa: A002 - the name of the field on the Hub
    report: Report | None = None,
) -> str:
    """Return a model card in Markdown, with the metadata of the Hugging Face Hub.

    Args:
        model: The model.
        name: Name of the model: its folder, or its repository on the Hub.
        data: Description of the training data, in Markdown.
        license: Identifier of the license of the weights on the Hub, such as ``"mit"``.
        report: Result of :func:`~tinyvae.evaluate`. The card says if it is a bound.

    Example:
        >>> from tinyvae.hub import model_card
        >>> card = model_card(vae, "user/bits", data="Random bits.", license="mit")
        >>> print(card.splitlines()[2])
        license: mit
    """
    return CARD.format(
        name=name,
        name_code=json.dumps(name),
        model=type(model).__name__,
        version=__version__,
        data=data or "Not described.",
        summary=describe(model),
        evaluation="Not evaluated." if report is None else _evaluation(report),
        license=license or "Not stated. Without a license, nobody else may use the weights.",
        license_id=license or "unknown",
    )


def _evaluation(report: Report) -> str:
    if report.is_bound:
        kind = "The ELBO is a lower bound on log p(x), and so are the importance-weighted estimates"
    else:
        kind = "These numbers are not bounds on log p(x)"
    units = "" if report.is_discrete else f" Bits per dimension measure {report.bits_unit}."
    bits = f"{report.bits_per_dim(report.best):.3f} bits per dimension."
    return f"{kind}, in nats per example. {bits}{units}\n\n```text\n{report}\n```"
