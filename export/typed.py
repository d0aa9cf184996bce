"""The typed twin of NAFNet, and its ONNX: precision is written in the graph, so every runtime sees the same numbers.

Weights and activations are FP16. Three kinds of FP32 islands stand between explicit casts: the statistics of LayerNorm
(FP16 squares overflow beyond 255), the pooled means of the channel attention (an FP16 sum over a tile overflows) and
the final addition of the input. Inputs and outputs are FP32. The FP32 network of `ssai3d_rt.network` is the reference;
the twin is made from its state with the linear parts folded (see `fold`). It does not judge the result: see `parity`.

>>> import numpy as np
>>> from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
>>> from ssai3d_rt.network.weights import state_from
>>> state = state_from(NAFNet(NAFNetShape(width=8, enc=(1,), middle=1, dec=(1,))))
>>> restored, peak = rehearse(state, np.ones((2, 1, 16, 16), np.float32))
>>> restored.shape, peak < FP16_MAX
((2, 1, 16, 16), True)
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ssai3d_rt.errors import MissingPackageError, ParityError
from ssai3d_rt.export.bundle import INPUT, OUTPUT
from ssai3d_rt.export.fold import folded_blocks
from ssai3d_rt.network.nafnet import EPS, NAFNetShape, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
else:
    try:
        import torch
        import torch.nn.functional as F
        from torch import Tensor, nn
    except ImportError:  # the class below then says what to install as soon as one is made

        class nn:  # noqa: N801
            """Stand-in for `torch.nn` where torch is absent."""

            class Module:
                """Refuses to be made, and says what to install."""

                def __init__(self, *args: object, **kwargs: object) -> None:
                    raise MissingPackageError("torch", extra="train")


OPSET = 18
FP16_MAX = 65504.0

Array = npt.NDArray[np.float32]


class TypedNAFNet(nn.Module):
    """NAFNet with folded weights, in FP16 with FP32 islands or all in FP32; 32-bit float in and out.

    Parameters
    ----------
    state
        A NAFNet's state, not yet folded.
    half
        FP16 with FP32 islands, else FP32.
    pool_window
        As in `NAFNet`.
    rehearsal
        Compute in FP32, but round every weight and every value that FP16 would store, and note the largest of them in
        `peak`: what a GPU's FP16 units do (they add up in FP32), at the speed of a CPU's FP32 units.
    """

    def __init__(
        self, state: Mapping[str, Array], *, half: bool, pool_window: int | None = None, rehearsal: bool = False
    ) -> None:
        super().__init__()
        self.shape: NAFNetShape = shape_of(state)
        self.rounds = half and rehearsal
        self.dtype = torch.float16 if half and not rehearsal else torch.float32
        self.pool_window = pool_window
        self.peak: Tensor | None = torch.zeros(()) if rehearsal else None
        for key, value in folded_blocks(state).items():
            tensor = torch.from_numpy(np.array(value, np.float32))
            self.register_buffer(_buffer(key), tensor.half().float() if self.rounds else tensor.to(self.dtype))

    def forward(self, tiles: Tensor) -> Tensor:
        """(N, C, T, T) float32 -> the same; T is a multiple of the shape's `multiple`."""
        shape = self.shape
        x = self._conv("intro", self._stored(tiles.to(self.dtype)), padding=1)
        skips = []
        for level, count in enumerate(shape.enc):
            x = self._blocks(f"encoders.{level}", x, count, level)
            skips.append(x)
            x = self._conv(f"downs.{level}", x, stride=2)
        x = self._blocks("middle_blks", x, shape.middle, len(shape.enc))
        for number, count in enumerate(shape.dec):
            x = self._stored(F.pixel_shuffle(self._conv(f"ups.{number}.0", x), 2) + skips.pop())
            x = self._blocks(f"decoders.{number}", x, count, len(shape.dec) - 1 - number)
        return self._conv("ending", x, padding=1).float() + tiles

    def _blocks(self, prefix: str, x: Tensor, count: int, level: int) -> Tensor:
        for number in range(count):
            x = self._block(f"{prefix}.{number}", x, level)
        return x

    def _block(self, prefix: str, x: Tensor, level: int) -> Tensor:
        y = self._conv(f"{prefix}.conv1", self._stored(_normalised(x)))
        y = self._gate(self._conv(f"{prefix}.conv2", y, padding=1, groups=y.shape[1]))
        attention = self._conv(f"{prefix}.sca.1", self._stored(self._pooled(y, level)))
        x = self._stored(x + self._conv(f"{prefix}.conv3", self._stored(y * attention)))
        y = self._gate(self._conv(f"{prefix}.conv4", self._stored(_normalised(x))))
        return self._stored(x + self._conv(f"{prefix}.conv5", y))

    def _pooled(self, y: Tensor, level: int) -> Tensor:
        """(N, C, H, W) -> (N, C, 1, 1), or (N, C, H, W) where the window is smaller than the image."""
        h, w = y.shape[-2:]
        wide = y.float()
        window = None if self.pool_window is None else self.pool_window >> level
        if window is None or (window >= h and window >= w):
            return wide.mean((2, 3), keepdim=True).to(y.dtype)
        kh, kw = min(window, h), min(window, w)
        # Rows, then columns: the same mean at 2 k instead of k^2 additions per pixel.
        means = F.avg_pool2d(F.avg_pool2d(wide, (kh, 1), stride=1), (1, kw), stride=1)
        dh, dw = h - means.shape[-2], w - means.shape[-1]
        return F.pad(means, (dw // 2, dw - dw // 2, dh // 2, dh - dh // 2), mode="replicate").to(y.dtype)

    def _gate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return self._stored(a * b)

    def _conv(self, name: str, x: Tensor, **options: int) -> Tensor:
        weight: Tensor = getattr(self, _buffer(f"{name}.weight"))
        bias: Tensor | None = getattr(self, _buffer(f"{name}.bias"), None)
        return self._stored(F.conv2d(x, weight, bias, **options))

    def _stored(self, x: Tensor) -> Tensor:
        """Pass on a value that is stored in the network's precision; look at it in a rehearsal."""
        if self.peak is None:
            return x
        self.peak = torch.maximum(self.peak, x.abs().nan_to_num(torch.inf, torch.inf).amax())
        return x.half().float() if self.rounds else x


def onnx_from_model(
    state: Mapping[str, Array],
    *,
    tile: int,
    precision: str = "fp16",
    pool_window: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Export a NAFNet as one ONNX file with dynamic batch and fixed tile.

    Parameters
    ----------
    state
        The network's weights by published name, one image channel.
    tile
        Side of a tile in pixels, a multiple of the network's `multiple`.
    precision
        ``fp16`` (with FP32 islands) or ``fp32``.
    pool_window
        As in `NAFNet`.
    metadata
        Written to the file's `metadata_props`.

    Returns
    -------
    The file's bytes: opset 18, input ``tiles`` and output ``restored``, (N, 1, tile, tile) float32, no external data.

    Raises
    ------
    ParityError
        Weights that are not finite, or that FP16 cannot hold.
    MissingPackageError
        torch, onnx or onnxscript is not installed.
    """
    if precision not in ("fp16", "fp32"):
        raise ValueError(f"precision {precision!r} is neither fp16 nor fp32")
    for package in ("torch", "onnx", "onnxscript"):
        _require(package)
    import onnx

    check_weights(state, half=precision == "fp16")
    network = TypedNAFNet(state, half=precision == "fp16", pool_window=pool_window).eval()
    if tile % network.shape.multiple:
        raise ValueError(f"tile {tile} px is not a multiple of {network.shape.multiple}")
    # A batch of one would be taken for a fixed size, hence two.
    example = torch.zeros(2, network.shape.channels, tile, tile)
    with _quiet_exporter(), torch.inference_mode():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"tiles": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def rehearse(
    state: Mapping[str, Array], tiles: Array, *, precision: str = "fp16", pool_window: int | None = None
) -> tuple[Array, float]:
    """Run tiles with the roundings of the export's precision, without the export.

    Runtimes on CPUs drop casts and compute FP16 graphs in FP32; they hide overflows and roundings that a GPU shows.
    This does not.

    Returns
    -------
    ``(N, 1, T, T)`` float32, infinite or NaN where FP16 overflows, and the largest absolute value inside the network,
    which is infinite once something overflowed (FP16 ends at `FP16_MAX`).
    """
    network = TypedNAFNet(state, half=precision == "fp16", pool_window=pool_window, rehearsal=True).eval()
    with torch.inference_mode():
        answers = [network(torch.from_numpy(tile[None])).numpy() for tile in tiles]
    assert network.peak is not None
    return np.concatenate(answers), float(network.peak)


def _normalised(x: Tensor) -> Tensor:
    """LayerNorm over the channels without scale and shift, its statistics in FP32; (N, C, H, W) -> the same."""
    wide = x.float()
    centred = wide - wide.mean(1, keepdim=True)
    variance = (centred * centred).mean(1, keepdim=True)
    return (centred * torch.rsqrt(variance + EPS)).to(x.dtype)


def _buffer(key: str) -> str:
    """Return the name of a weight as a module's buffer, and so in the ONNX: dots are not allowed."""
    return key.replace(".", "_")


def check_weights(state: Mapping[str, Array], *, half: bool) -> None:
    """Refuse weights that are not finite or, for FP16, beyond its range, folded or not.

    Raises
    ------
    ParityError
        Names the first such weights.
    """
    for key, value in {**state, **folded_blocks(state)}.items():
        if not np.isfinite(value).all():
            raise ParityError(f"the weights {key} are not finite (NaN or infinity); train again from an earlier state")
        peak = float(np.abs(value).max(initial=0.0))
        if half and peak > FP16_MAX:
            raise ParityError(
                f"the weights {key} reach {peak:.3g}, FP16 ends at {FP16_MAX:.0f}; export with --precision fp32"
            )


def _strip(model: Any) -> None:
    """Remove what the exporter notes for debugging: stack traces with paths of this machine, types of each value."""
    del model.graph.value_info[:]
    model.graph.ClearField("doc_string")
    del model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        item.ClearField("doc_string")
        del item.metadata_props[:]


def _require(package: str) -> None:
    import importlib

    try:
        importlib.import_module(package)
    except ImportError:
        raise MissingPackageError(package, extra="train") from None


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence two remarks of torch's exporter that say nothing of our network."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # "torchvision is not installed. Skipping torchvision::nms"
    try:
        with warnings.catch_warnings():
            # Raised inside torch.export when it copies its own tree specifications (torch 2.13).
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        registration.setLevel(level)
