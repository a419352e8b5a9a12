"""Attention over a ragged KV cache by libkvtier_cuda.so (cuda/kvtier_ragged_decode.h).

Needs nothing but the library: memory is the caller's, given as addresses (`tensor.data_ptr()` of any
framework) and the stream as its handle (`torch.cuda.current_stream().cuda_stream`).

    library = Library("libkvtier_cuda.so")
    plan = library.plan(heads, head_dim=128, group=4, dtype=BF16, scale=128 ** -0.5,
                        multiprocessors=132)
    ... copy plan.buffer (plan.bytes, host) to the device, allocate plan.workspace_bytes there ...
    plan.decode(device_plan, q, out, workspace, stream)

A plan belongs to the spans that it was made from; it may be used from any thread, and as often as
wanted, also while a CUDA graph is captured: decode() launches kernels and does nothing else.
"""

import ctypes
from dataclasses import dataclass

VERSION = 1
F32, F16, BF16 = 1, 2, 3
RAW, INT8, INT4 = 1, 2, 3

BAD_VERSION, BAD_ARGUMENT, TOO_SMALL, MISALIGNED, NO_MEMORY = -1, -2, -3, -4, -5

_ALIGNMENT = 16


class RaggedError(RuntimeError):
    """What the library refused. `code` is one of the names above, or a cudaError_t above 0."""

    def __init__(self, what, code, message):
        super().__init__(f"{what}: {message} ({code})")
        self.code = code


@dataclass(frozen=True)
class Span:
    """Rows of one head that lie together in device memory, as addresses."""

    keys: int
    values: int
    rows: int
    codec: int = RAW
    key_scales: int = 0
    value_scales: int = 0


class _Span(ctypes.Structure):
    _fields_ = [("keys", ctypes.c_void_p), ("values", ctypes.c_void_p),
                ("key_scales", ctypes.c_void_p), ("value_scales", ctypes.c_void_p),
                ("rows", ctypes.c_int64), ("codec", ctypes.c_int32), ("reserved", ctypes.c_int32)]


class _Shape(ctypes.Structure):
    _fields_ = [("struct_bytes", ctypes.c_uint32), ("version", ctypes.c_uint32),
                ("q_dtype", ctypes.c_int32), ("kv_dtype", ctypes.c_int32),
                ("query_rows", ctypes.c_int64), ("group", ctypes.c_int64),
                ("kv_heads", ctypes.c_int64), ("head_dim", ctypes.c_int64),
                ("window", ctypes.c_int64), ("scale", ctypes.c_float),
                ("multiprocessors", ctypes.c_int32), ("spans", ctypes.POINTER(_Span)),
                ("span_begin", ctypes.POINTER(ctypes.c_int64))]


class _Sizes(ctypes.Structure):
    _fields_ = [("struct_bytes", ctypes.c_uint32), ("version", ctypes.c_uint32),
                ("plan_bytes", ctypes.c_uint64), ("workspace_bytes", ctypes.c_uint64)]


class _Io(ctypes.Structure):
    _fields_ = [("struct_bytes", ctypes.c_uint32), ("version", ctypes.c_uint32),
                ("q", ctypes.c_void_p), ("out", ctypes.c_void_p), ("workspace", ctypes.c_void_p),
                ("workspace_bytes", ctypes.c_uint64), ("stream", ctypes.c_void_p)]


def _versioned(structure, **fields):
    return structure(struct_bytes=ctypes.sizeof(structure), version=VERSION, **fields)


class Library:
    """The loaded library. Refuses one of another version."""

    def __init__(self, path):
        self._library = ctypes.CDLL(path)
        self._library.kvtier_ragged_version.restype = ctypes.c_uint32
        self._library.kvtier_ragged_error.restype = ctypes.c_char_p
        self._library.kvtier_ragged_error.argtypes = [ctypes.c_int]
        self._library.kvtier_ragged_plan.argtypes = [
            ctypes.POINTER(_Shape), ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(_Sizes)]
        self._library.kvtier_ragged_decode.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(_Io)]
        version = self._library.kvtier_ragged_version()
        if version != VERSION:
            raise RaggedError(path, BAD_VERSION, f"has version {version}, {VERSION} is needed")

    def check(self, what, code):
        if code != 0:
            raise RaggedError(what, code, self._library.kvtier_ragged_error(code).decode())

    def plan(self, heads, *, head_dim, group, dtype, scale, multiprocessors, kv_dtype=None,
             query_rows=1, window=0):
        """`heads` is a list per KV head of its Spans, the last rows being the queries' own."""
        flat = [span for head in heads for span in head]
        spans = (_Span * len(flat))(*[
            _Span(s.keys, s.values, s.key_scales, s.value_scales, s.rows, s.codec, 0)
            for s in flat])
        begin = (ctypes.c_int64 * (len(heads) + 1))()
        for i, head in enumerate(heads):
            begin[i + 1] = begin[i] + len(head)
        shape = _versioned(_Shape, q_dtype=dtype, kv_dtype=kv_dtype or dtype,
                           query_rows=query_rows, group=group, kv_heads=len(heads),
                           head_dim=head_dim, window=window, scale=scale,
                           multiprocessors=multiprocessors, spans=spans, span_begin=begin)
        sizes = _versioned(_Sizes)
        self.check("plan", self._library.kvtier_ragged_plan(shape, None, 0, sizes))
        memory = ctypes.create_string_buffer(sizes.plan_bytes + _ALIGNMENT)
        address = -(-ctypes.addressof(memory) // _ALIGNMENT) * _ALIGNMENT
        self.check("plan",
                   self._library.kvtier_ragged_plan(shape, address, sizes.plan_bytes, sizes))
        return Plan(self, memory, address, sizes.plan_bytes, sizes.workspace_bytes)

    def decode(self, plan, device_plan, io):
        self.check("decode", self._library.kvtier_ragged_decode(plan, device_plan, io))


@dataclass(frozen=True)
class Plan:
    """How the rows are shared out. `buffer` is host memory of `bytes` bytes."""

    library: Library
    memory: object
    buffer: int
    bytes: int
    workspace_bytes: int

    def decode(self, device_plan, q, out, workspace, stream=0, workspace_bytes=None):
        """Enqueues the attention of `q` into `out`; all arguments are addresses or handles."""
        io = _versioned(_Io, q=q, out=out, workspace=workspace or None,
                        workspace_bytes=self.workspace_bytes if workspace_bytes is None
                        else workspace_bytes, stream=stream or None)
        self.library.decode(self.buffer, device_plan, io)
