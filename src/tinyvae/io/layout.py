"""Layout of tensor files, which the writer and the reader share."""

import torch

FORMAT = "tinyvae"
FORMAT_VERSION = "1"
MAX_HEADER = 16 * 2**20  # bytes; a model with 1000 tensors has about 0.1 MiB
ZEROS = b"0" * 64  # in place of the digest, which covers them
DIGEST_KEY = b'"sha256":"'  # JSON strings escape quotes, so they cannot contain it
# Names of safetensors, in the order in which it stores tensors: each is aligned to its elements.
DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
