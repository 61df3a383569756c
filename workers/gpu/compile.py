"""From CUDA C++ to a card's machine code, by NVRTC, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from placement.errors import InputError, PotluckError
from placement.files.atomic import replacing
from workers.gpu.errors import DeviceUnavailable
from workers.gpu.modules import Module, headers

if TYPE_CHECKING:
    from cuda.bindings import nvrtc

INSTALL = "pip install cuda-bindings nvidia-cuda-nvrtc"

# docs/arithmetic.md: product and sum are two roundings, quotients and roots are IEEE's, nothing is flushed.
FLAGS = ("--std=c++17", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false")


@dataclass(frozen=True, slots=True)
class Compiled:
    """Machine code for one generation of cards; `log`: what the compiler says of registers and spills."""

    image: bytes
    log: str


def compile_module(module: Module, capability: tuple[int, int], *, as_text: bool = False) -> Compiled:
    """Compile now.

    Args:
        capability: the card's generation, such as (8, 6).
        as_text: PTX, to read, in place of machine code.

    Raises:
        DeviceUnavailable: the compiler is not installed, or knows no such generation.
        PotluckError: the source is refused, which is a fault of this release.
    """
    nvrtc = load_nvrtc()
    arch = f"{capability[0]}{capability[1]}"
    files = headers()
    _, program = _checked(
        nvrtc.nvrtcCreateProgram(
            module.source.encode(),
            f"{module.name}.cu".encode(),
            len(files),
            list(files.values()),
            [name.encode() for name in files],
        ),
        module,
    )
    try:
        target = f"--gpu-architecture={'compute' if as_text else 'sm'}_{arch}"
        options = [option.encode() for option in (target, *FLAGS, "--ptxas-options=-v")]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        _, log_bytes = _checked(nvrtc.nvrtcGetProgramLogSize(program), module)
        # Never bytes, into which the compiler would write: those of length 1 are Python's own, shared by all.
        log = bytearray(log_bytes)
        _checked(nvrtc.nvrtcGetProgramLog(program, log), module)
        told = log.decode(errors="replace").strip("\x00 \n")
        if error == nvrtc.nvrtcResult.NVRTC_ERROR_INVALID_OPTION:
            known = ", ".join(f"{known // 10}.{known % 10}" for known in supported())
            raise DeviceUnavailable(
                f"the installed NVRTC compiles for compute capability {known}, and the card has "
                f"{capability[0]}.{capability[1]}: install another version of nvidia-cuda-nvrtc, or use "
                "--device cpu"
            )
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise PotluckError(f"GPU kernels {module.name} do not compile for sm_{arch}: {told}")
        size_of, give = (
            (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
            if as_text
            else (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        )
        _, num_bytes = _checked(size_of(program), module)
        image = bytearray(num_bytes)
        _checked(give(program, image), module)
        return Compiled(bytes(image), told)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def compiled(module: Module, capability: tuple[int, int], cache: Path | None = None) -> bytes:
    """Machine code, from the cache where it is there.

    Args:
        cache: a folder; the user's where left out. Where it cannot be written, nothing is kept.
    """
    folder = user_cache() if cache is None else cache
    if folder is None:
        return compile_module(module, capability).image
    path = folder / f"{module.name}-{_key(module, capability)}.checked"
    kept = _kept(path)
    if kept is not None:
        return kept
    image = compile_module(module, capability).image
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(hashlib.sha256(image).digest() + image)
    except (OSError, InputError):
        pass
    return image


def supported() -> tuple[int, ...]:
    """Generations that the installed NVRTC compiles for, such as 86.

    Raises:
        DeviceUnavailable: it is not installed.
    """
    nvrtc = load_nvrtc()
    _, known = nvrtc.nvrtcGetSupportedArchs()
    return tuple(known)


def version() -> tuple[int, int]:
    """NVRTC's, that of the CUDA toolkit it belongs to; raises as `supported`."""
    nvrtc = load_nvrtc()
    _, major, minor = nvrtc.nvrtcVersion()
    return int(major), int(minor)


def user_cache() -> Path | None:
    """Where compiled kernels are kept; None for a user without a home."""
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "potluck" / "kernels"
    except RuntimeError:
        return None


def load_nvrtc() -> nvrtc:
    """The bindings, with NVRTC's library.

    Raises:
        DeviceUnavailable: one of them is not installed.
    """
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise DeviceUnavailable(
            f"a GPU needs cuda-bindings and NVRTC, which are not installed here: {INSTALL}, or use "
            "--device cpu"
        ) from error
    return nvrtc


def _kept(path: Path) -> bytes | None:
    """What `compiled` wrote there, whole, and for this user: what others wrote would run as ours does."""
    try:
        with path.open("rb") as file:
            is_own = os.fstat(file.fileno()).st_uid == os.geteuid()
            digest, image = file.read(hashlib.sha256().digest_size), file.read()
    except OSError:
        return None
    return image if is_own and hashlib.sha256(image).digest() == digest else None


def _key(module: Module, capability: tuple[int, int]) -> str:
    told = hashlib.sha256(repr((module, capability, FLAGS, version(), sorted(headers().items()))).encode())
    return told.hexdigest()[:32]


def _checked(result: Sequence[Any], module: Module) -> Sequence[Any]:
    if int(result[0]) != 0:
        raise PotluckError(f"GPU kernels {module.name}: NVRTC says {result[0]}")
    return result
