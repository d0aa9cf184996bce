"""The typed twin of NAFNet, and its ONNX: precision is written in the graph, so every runtime sees the same numbers.

Weights and activations are FP16. Three kinds of FP32 islands stand between explicit casts: the statistics of LayerNorm
(FP16 squares overflow beyond 255), the pooled means of the channel attention (an FP16 sum over a tile overflows) and
the final addition of the input. Tensors that calibration found too large for FP16 are islands too (`Form.wide`): what
takes or gives one computes in FP32, until a tensor may be FP16 again. Inputs and outputs are FP32. The FP32 network of
`ssai3d_rt.network` is the reference; the twin is made from its state with the linear parts folded (see `fold`). It does
not judge the result: see `parity`; nor choose the islands: see `ssai3d_rt.calibration.precision`.

>>> from ssai3d_rt.network.nafnet import NAFNet, NAFNetShape
>>> from ssai3d_rt.network.weights import state_from
>>> state = state_from(NAFNet(NAFNetShape(width=8, enc=(1,), middle=1, dec=(1,))))
>>> network = TypedNAFNet(state, Form(wide=frozenset({"intro"})))
>>> network.intro_weight.dtype, network(torch.ones(2, 1, 16, 16)).shape
(torch.float16, torch.Size([2, 1, 16, 16]))
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ssai3d_rt.calibration.precision import FP16_MAX, fits_half
from ssai3d_rt.errors import MissingPackageError, ParityError
from ssai3d_rt.export.bundle import INPUT, OUTPUT
from ssai3d_rt.export.fold import ALL_STEPS, Step, folded_blocks
from ssai3d_rt.network.nafnet import EPS, NAFNetShape, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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

Array = npt.NDArray[np.float32]
LayerNorm = Literal["island", "native32", "native16"]


@dataclass(frozen=True, slots=True)
class Form:
    """How the twin is written.

    Parameters
    ----------
    precision
        ``fp16`` (with FP32 islands) or ``fp32``.
    layer_norm
        ``island``: plain arithmetic in FP32 between casts. ``native32``: the ONNX operator LayerNormalization in FP32
        between casts. ``native16``: that operator on FP16, where its input is FP16; whether a runtime then takes the
        squares in FP16, where they overflow beyond 255, is its own choice.
    wide
        Names of stored tensors that stay FP32, see `ssai3d_rt.calibration.precision.tensor_names`.
    pool_window
        As in `NAFNet`.
    steps
        Steps of folding to take.
    """

    precision: Literal["fp16", "fp32"] = "fp16"
    layer_norm: LayerNorm = "island"
    wide: frozenset[str] = frozenset()
    pool_window: int | None = None
    steps: frozenset[Step] = ALL_STEPS

    def __post_init__(self) -> None:
        for value, known in ((self.precision, ("fp16", "fp32")), (self.layer_norm, LayerNorm.__args__)):  # type: ignore[attr-defined]
            if value not in known:
                raise ValueError(f"{value!r} is none of {', '.join(known)}")

    def narrow(self, name: str) -> bool:
        """Whether a tensor is stored in FP16."""
        return self.precision == "fp16" and name not in self.wide


class TypedNAFNet(nn.Module):
    """NAFNet with folded weights, in FP16 with FP32 islands or all in FP32; 32-bit float in and out.

    Parameters
    ----------
    state
        A NAFNet's state, not yet folded.
    form
        How it is written.
    rehearsal
        Compute in FP32, but round every weight and every value that FP16 would store: what a GPU's FP16 units do (they
        add up in FP32), at the speed of a CPU's FP32 units.
    observe
        Called with the name and the values, not yet rounded, of every tensor that is stored.
    """

    def __init__(
        self,
        state: Mapping[str, Array],
        form: Form | None = None,
        *,
        rehearsal: bool = False,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        self.form = form or Form()
        self.rehearsal = rehearsal
        self.observe = observe
        folded = folded_blocks(state, self.form.steps)
        self.shape: NAFNetShape = shape_of(folded)
        wide = set(wide_weights(folded)) if self.form.precision == "fp16" else set()
        for key, value in folded.items():
            tensor = torch.from_numpy(np.array(value, np.float32))
            owner, _, part = key.rpartition(".")
            plain = part in ("beta", "gamma") or owner.rpartition(".")[2] in ("norm1", "norm2")
            if self.form.precision == "fp16" and not plain and owner not in wide:
                tensor = tensor.half().float() if rehearsal else tensor.half()
            self.register_buffer(_buffer(key), tensor)

    def forward(self, tiles: Tensor) -> Tensor:
        """(N, 1, T, T) float32 -> the same; T is a multiple of the shape's `multiple`."""
        shape = self.shape
        image = tiles.expand(-1, shape.channels, -1, -1) if shape.channels > 1 else tiles
        x, at = self._conv("intro", self._keep("tiles", image), padding=1), "intro"
        skips = []
        for level, count in enumerate(shape.enc):
            x, at = self._blocks(f"encoders.{level}", x, count, level, at)
            skips.append(x)
            x, at = self._conv(f"downs.{level}", x, stride=2), f"downs.{level}"
        x, at = self._blocks("middle_blks", x, shape.middle, len(shape.enc), at)
        for number, count in enumerate(shape.dec):
            up = F.pixel_shuffle(self._conv(f"ups.{number}.0", x, stored=f"ups.{number}"), 2)
            x, at = self._sum(f"skips.{number}", up, skips.pop()), f"skips.{number}"
            x, at = self._blocks(f"decoders.{number}", x, count, len(shape.dec) - 1 - number, at)
        restored = self._conv("ending", x, padding=1).float() + image
        return restored.mean(1, keepdim=True) if shape.channels > 1 else restored

    def _blocks(self, prefix: str, x: Tensor, count: int, level: int, at: str) -> tuple[Tensor, str]:
        for number in range(count):
            x = self._block(f"{prefix}.{number}", x, level, at)
            at = f"{prefix}.{number}.residual2"
        return x, at

    def _block(self, block: str, x: Tensor, level: int, at: str) -> Tensor:
        """(N, C, H, W) -> the same; `at` names the tensor that comes in."""
        y = self._conv(f"{block}.conv1", self._norm(f"{block}.norm1", x, at))
        y = self._gate(f"{block}.gate1", self._conv(f"{block}.conv2", y, padding=1, groups=y.shape[1]))
        pooled = self._keep(f"{block}.pooled", self._pooled(y.float(), level))
        attention = self._conv(f"{block}.sca.1", pooled, stored=f"{block}.attention")
        y, attention = self._alike(f"{block}.attended", y, attention)
        y = self._conv(f"{block}.conv3", self._keep(f"{block}.attended", y * attention))
        x = self._sum(f"{block}.residual1", x, self._scaled(f"{block}.conv3", f"{block}.beta", y))
        y = self._conv(f"{block}.conv4", self._norm(f"{block}.norm2", x, f"{block}.residual1"))
        y = self._conv(f"{block}.conv5", self._gate(f"{block}.gate2", y))
        return self._sum(f"{block}.residual2", x, self._scaled(f"{block}.conv5", f"{block}.gamma", y))

    def _norm(self, name: str, x: Tensor, at: str) -> Tensor:
        """LayerNorm over the channels; (N, C, H, W) -> the same. Its scale and shift are there unless folded."""
        weight: Tensor | None = getattr(self, _buffer(f"{name}.weight"), None)
        bias: Tensor | None = getattr(self, _buffer(f"{name}.bias"), None)
        native, half = self.form.layer_norm != "island", self.form.layer_norm == "native16" and self.form.narrow(at)
        if native and not (half and self.rehearsal):
            x = x if half else x.float()
            if weight is not None and bias is not None:
                weight, bias = weight.to(x.dtype), bias.to(x.dtype)
            y = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, EPS).permute(0, 3, 1, 2)
            return self._keep(name, y)
        y = self._normalised_in_half(name, x) if half else _normalised(x)
        if weight is not None and bias is not None:
            y = y * weight[:, None, None] + bias[:, None, None]
        return self._keep(name, y)

    def _normalised_in_half(self, name: str, x: Tensor) -> Tensor:
        """LayerNorm as a runtime does it that takes FP16 at its word: every value rounded, sums in FP32."""

        def rounded(value: Tensor) -> Tensor:
            return value.half().float()

        centred = rounded(x - rounded(x.mean(1, keepdim=True)))
        squares = rounded(centred * centred)
        if self.observe is not None:
            self.observe(f"{name}.squares", squares)
        variance = rounded(squares.mean(1, keepdim=True))
        return rounded(centred * rounded(torch.rsqrt(rounded(variance + EPS))))

    def _pooled(self, y: Tensor, level: int) -> Tensor:
        """(N, C, H, W) -> (N, C, 1, 1), or (N, C, H, W) where the window is smaller than the image, or not folded."""
        h, w = y.shape[-2:]
        window = None if self.form.pool_window is None else self.form.pool_window >> level
        whole = window is None or (window >= h and window >= w)
        kh, kw = (h, w) if window is None else (min(window, h), min(window, w))
        if Step.POOL not in self.form.steps:
            means = F.avg_pool2d(y, (kh, kw), stride=1)
        elif whole:
            return y.mean((2, 3), keepdim=True)
        else:  # rows, then columns: the same mean at 2 k instead of k^2 additions per pixel
            means = F.avg_pool2d(F.avg_pool2d(y, (kh, 1), stride=1), (1, kw), stride=1)
        dh, dw = h - means.shape[-2], w - means.shape[-1]
        return F.pad(means, (dw // 2, dw - dw // 2, dh // 2, dh - dh // 2), mode="replicate")

    def _gate(self, name: str, x: Tensor) -> Tensor:
        a, b = self._alike(name, x)[0].chunk(2, 1)
        return self._keep(name, a * b)

    def _sum(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        a, b = self._alike(name, a, b)
        return self._keep(name, a + b)

    def _scaled(self, name: str, factor: str, y: Tensor) -> Tensor:
        """Multiply by `beta` or `gamma`, unless folded."""
        scale: Tensor | None = getattr(self, _buffer(factor), None)
        return y if scale is None else self._keep(name, y * scale.to(y.dtype))

    def _conv(self, name: str, x: Tensor, *, stored: str | None = None, **options: int) -> Tensor:
        weight: Tensor = getattr(self, _buffer(f"{name}.weight"))
        bias: Tensor | None = getattr(self, _buffer(f"{name}.bias"), None)
        x, weight = self._alike(stored or name, x, weight)
        bias = None if bias is None else bias.to(weight.dtype)
        return self._keep(stored or name, F.conv2d(x, weight, bias, **options))

    def _alike(self, name: str, *values: Tensor) -> tuple[Tensor, ...]:
        """Give the values that make a tensor one type: FP32 where one of them is, or the result will be."""
        if self.form.narrow(name) and all(value.dtype == torch.float16 for value in values):
            return values
        return tuple(value.float() for value in values)

    def _keep(self, name: str, x: Tensor) -> Tensor:
        """Pass on a value as it is stored: FP16, or FP32 where it has to be."""
        if self.observe is not None:
            self.observe(name, x)
        if not self.form.narrow(name):
            return x.float()
        return x.half().float() if self.rehearsal else x.half()


def onnx_from_model(
    state: Mapping[str, Array],
    form: Form | None = None,
    *,
    tile: int,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Export a NAFNet as one ONNX file with dynamic batch and fixed tile.

    Parameters
    ----------
    state
        The network's weights by published name.
    form
        Precision, LayerNorm, FP32 tensors, pooling window and steps of folding.
    tile
        Side of a tile in pixels, a multiple of the network's `multiple`.
    metadata
        Written to the file's `metadata_props`.

    Returns
    -------
    The file's bytes: opset 18, input ``tiles`` and output ``restored``, (N, 1, tile, tile) float32, no external data.

    Raises
    ------
    ParityError
        Weights that are not finite.
    MissingPackageError
        torch, onnx or onnxscript is not installed.
    """
    for package in ("torch", "onnx", "onnxscript"):
        _require(package)
    import onnx

    check_weights(state)
    network = TypedNAFNet(state, form).eval()
    if tile % network.shape.multiple:
        raise ValueError(f"tile {tile} px is not a multiple of {network.shape.multiple}")
    # A batch of one would be taken for a fixed size, hence two.
    example = torch.zeros(2, 1, tile, tile)
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


def _normalised(x: Tensor) -> Tensor:
    """LayerNorm over the channels without scale and shift, in FP32; (N, C, H, W) -> the same."""
    wide = x.float()
    centred = wide - wide.mean(1, keepdim=True)
    variance = (centred * centred).mean(1, keepdim=True)
    return centred * torch.rsqrt(variance + EPS)


def _buffer(key: str) -> str:
    """Return the name of a weight as a module's buffer, and so in the ONNX: dots are not allowed."""
    return key.replace(".", "_")


def wide_weights(folded: Mapping[str, Array]) -> tuple[str, ...]:
    """Name the convolutions, of a state as folded, whose weights or bias FP16 cannot hold."""
    layers = [key.removesuffix(".weight") for key in folded if key.endswith(".weight") and ".norm" not in key]

    def fits(layer: str) -> bool:
        bias = folded.get(f"{layer}.bias")
        return fits_half(folded[f"{layer}.weight"]) and (bias is None or float(np.abs(bias).max()) <= FP16_MAX)

    return tuple(layer for layer in layers if not fits(layer))


def check_weights(state: Mapping[str, Array]) -> None:
    """Refuse weights that are not finite, folded or not.

    Raises
    ------
    ParityError
        Names the first such weights.
    """
    for key, value in {**state, **folded_blocks(state)}.items():
        if not np.isfinite(value).all():
            raise ParityError(f"the weights {key} are not finite (NaN or infinity); train again from an earlier state")


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
