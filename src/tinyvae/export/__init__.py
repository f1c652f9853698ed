"""Export of encoders, decoders and samplers to ONNX and to programs of torch.

A file runs without this library: by onnxruntime, or by torch alone. All randomness is an input::

    export(vae, "sampler", "sampler.onnx")

ONNX needs the extra ``export`` (``pip install 'tinyvae[export]'``).
"""

from tinyvae.export.program import export as export
