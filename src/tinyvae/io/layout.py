"""Layout of tensor files, which the writer and the reader share."""

import torch

FORMAT = "tinyvae"
FORMAT_VERSION = "1"
MAX_HEADER = 16 * 2**20  # bytes; a model with 1000 tensors has about 0.1 MiB
ZEROS = b"0" * 64  # in place of the digest, which covers them
DIGEST_KEY = b'"sha256":"'  # JSON strings escape quotes, so they cannot contain it
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
