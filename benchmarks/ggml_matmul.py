"""llama.cpp's own product of a quantised matrix and float32 rows, by its libraries.

`libggml-base.so` and `libggml-cpu.so` lie beside its programs. Declared here is what of their C interface is
needed (ggml.h, ggml-backend.h, ggml-cpu.h).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.llamacpp import VARIABLE
from workers.probe.random_blocks import ggml_type

BASE, CPU = "libggml-base.so", "libggml-cpu.so"
Product = Callable[[], NDArray[np.float32]]

_FLOAT32 = 0
_CONTEXT_BYTES = 1 << 20  # of what describes tensors and a graph
_P, _I, _L, _Z = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _Z), ("mem_buffer", _P), ("no_alloc", ctypes.c_bool))


_BASE_FUNCTIONS: dict[str, tuple[list[Any], Any]] = {
    "ggml_init": ([_InitParams], _P),
    "ggml_free": ([_P], None),
    "ggml_new_tensor_2d": ([_P, _I, _L, _L], _P),
    "ggml_mul_mat": ([_P, _P, _P], _P),
    "ggml_new_graph": ([_P], _P),
    "ggml_build_forward_expand": ([_P, _P], None),
    "ggml_nbytes": ([_P], _Z),
    "ggml_backend_cpu_buffer_type": ([], _P),
    "ggml_backend_buft_alloc_buffer": ([_P, _Z], _P),
    "ggml_backend_buffer_get_base": ([_P], _P),
    "ggml_backend_buffer_free": ([_P], None),
    "ggml_backend_tensor_alloc": ([_P, _P, _P], _I),
    "ggml_backend_tensor_set": ([_P, _P, _Z, _Z], None),
    "ggml_backend_reg_dev_get": ([_P, _Z], _P),
    "ggml_backend_reg_get_proc_address": ([_P, ctypes.c_char_p], _P),
    "ggml_backend_dev_supports_op": ([_P, _P], ctypes.c_bool),
    "ggml_backend_graph_compute": ([_P, _P], _I),
    "ggml_backend_free": ([_P], None),
}
_CPU_FUNCTIONS: dict[str, tuple[list[Any], Any]] = {
    "ggml_backend_cpu_init": ([], _P),
    "ggml_backend_cpu_set_n_threads": ([_P, _I], None),
    "ggml_backend_cpu_reg": ([], _P),
}


@dataclass(frozen=True, slots=True)
class Ggml:
    """The libraries of one build."""

    base: ctypes.CDLL
    cpu: ctypes.CDLL

    @classmethod
    def find(cls, folder: Path | None) -> Ggml | None:
        """Those in `folder`, else where LLAMACPP_BIN says; None where they are not both there."""
        place = folder or Path(os.environ.get(VARIABLE, ""))
        paths = (place.resolve() / BASE, place.resolve() / CPU)
        if not all(path.is_file() for path in paths):
            return None
        libraries = []
        for path, functions in zip(paths, (_BASE_FUNCTIONS, _CPU_FUNCTIONS), strict=True):
            library = ctypes.CDLL(str(path))
            for name, (arguments, result) in functions.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, result
            libraries.append(library)
        return cls(*libraries)

    @contextmanager
    def products(
        self, form: str, weights: NDArray[np.uint8], x: NDArray[np.float32], threads: int
    ) -> Iterator[list[Product]]:
        """Calls that multiply, one for each way that llama.cpp may hold the matrix: as in the file, repacked.

        Args:
            weights: contiguous [rows, bytes of a row], copied.
            x: contiguous [num_rows, columns], copied.

        Yields:
            Of each way a call that returns [num_rows, rows], the same memory every time.
        """
        with ExitStack() as until:
            ours = self.base.ggml_backend_cpu_buffer_type()
            backend = self.cpu.ggml_backend_cpu_init()
            until.callback(self.base.ggml_backend_free, backend)
            self.cpu.ggml_backend_cpu_set_n_threads(backend, threads)
            yield [
                product
                for kind in (ours, *self._extra_buffer_types())
                if (product := self._product(until, backend, kind, form, weights, x)) is not None
            ]

    def _product(
        self,
        until: ExitStack,
        backend: int,
        kind: int,
        form: str,
        weights: NDArray[np.uint8],
        x: NDArray[np.float32],
    ) -> Product | None:
        """With the matrix in memory of one kind; None where llama.cpp has no kernel for it there."""
        base = self.base
        context = base.ggml_init(_InitParams(_CONTEXT_BYTES, None, True))
        until.callback(base.ggml_free, context)
        matrix = base.ggml_new_tensor_2d(context, int(ggml_type(form)), x.shape[1], len(weights))
        rows = base.ggml_new_tensor_2d(context, _FLOAT32, x.shape[1], len(x))
        out = base.ggml_mul_mat(context, matrix, rows)
        host = base.ggml_backend_cpu_buffer_type()
        self._place(until, matrix, kind)
        self._place(until, rows, host)
        address = self._place(until, out, host)
        if not base.ggml_backend_dev_supports_op(self._device(), out):
            return None
        for tensor, content in ((matrix, weights), (rows, x)):
            base.ggml_backend_tensor_set(tensor, content.ctypes.data, 0, content.nbytes)
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, out)
        values = (ctypes.c_float * (len(x) * len(weights))).from_address(address)
        result: NDArray[np.float32] = np.ctypeslib.as_array(values).reshape(len(x), len(weights))

        def multiply() -> NDArray[np.float32]:
            status = base.ggml_backend_graph_compute(backend, graph)
            if status:
                raise RuntimeError(f"ggml_backend_graph_compute ended with {status}")
            return result

        return multiply

    def _place(self, until: ExitStack, tensor: int, kind: int) -> int:
        """Give a tensor memory of a kind; where it lies."""
        buffer = self.base.ggml_backend_buft_alloc_buffer(kind, self.base.ggml_nbytes(tensor))
        until.callback(self.base.ggml_backend_buffer_free, buffer)
        address: int = self.base.ggml_backend_buffer_get_base(buffer)
        self.base.ggml_backend_tensor_alloc(buffer, tensor, address)
        return address

    def _device(self) -> int:
        device: int = self.base.ggml_backend_reg_dev_get(self.cpu.ggml_backend_cpu_reg(), 0)
        return device

    def _extra_buffer_types(self) -> list[int]:
        """Kinds of memory in which matrices are packed anew."""
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.base.ggml_backend_reg_get_proc_address(self.cpu.ggml_backend_cpu_reg(), name)
        if not address:
            return []
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(_P), _P)(address)(self._device())
        found = []
        for i in range(16):
            if not kinds[i]:
                break
            found.append(kinds[i])
        return found
