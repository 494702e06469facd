"""Where an encoder's starting weights come from: the libraries' own hub, or a local file; and whether they may be used.

The hub is the libraries' business; this module makes its absence a clear error within seconds, and reads local files
without ever running what they contain.
"""

from __future__ import annotations

import pickle
import ssl
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerialseg.errors import AerialsegError, ConfigError, ModelError, NoInputError, first_line, one_line
from aerialseg.files import is_regular, open_regular

if TYPE_CHECKING:
    from torch import Tensor, nn

HUB_TIMEOUT_S = 10.0
KNOCK = "/timm/resnet18.a1_in1k/resolve/main/config.json"
"""A place like those that weights come from: some networks let pass the hub's first page alone."""
PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "isc"})
NESTED = ("state_dict", "model_state_dict", "model", "model_state")
"""Where programs keep the weights inside a checkpoint."""
PREFIXES = ("network.encoder.", "model.encoder.", "module.encoder.", "encoder.", "module.")
HEADS = ("fc_", "head_", "classifier_", "last_linear_", "norm_")
INSTEAD = 'set weights = "none", or weights = "FILE" to a local .safetensors or .pth file of the encoder'


def check_licence(encoder: str) -> None:
    """Raise ConfigError when timm records no permissive licence for the encoder's pretrained weights.

    smp's own ImageNet encoders are ports of permissively licensed weights; `mit_b*`, whose licence is
    asked for before, never comes here.
    """
    from timm.models import get_pretrained_cfg

    if not encoder.startswith("tu-"):
        return
    settings = get_pretrained_cfg(encoder[3:])
    licence = getattr(settings, "license", None)
    if licence not in PERMISSIVE:
        raise ConfigError(
            f"encoder {encoder}: its pretrained weights are under {licence or 'no known licence'!r}, which is not among"
            f" the permissive ones; choose another encoder, or {INSTEAD} that you may use"
        )


@contextmanager
def downloading(encoder: str) -> Iterator[None]:
    """Turn what smp, timm and the hub raise while weights are fetched into our errors.

    The hub's client repeats a failing request for 23 s, and for minutes where nothing comes (measured); so the hub is
    knocked at first, and when it does not answer only what was downloaded before is used.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_answers(constants.ENDPOINT + KNOCK, HUB_TIMEOUT_S)
    try:
        yield
    except AerialsegError:
        raise
    except Exception as error:  # the client's own errors differ between its versions; all that mean absence are OSError
        if isinstance(error, KeyError | RuntimeError | ValueError) and not isinstance(error, OSError):
            raise ConfigError(
                f"encoder {encoder}: there are no usable imagenet weights ({first_line(error)}); {INSTEAD}"
            ) from error
        why = f"cannot be downloaded: {first_line(error)}"
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set" if before else f"{constants.ENDPOINT} cannot be reached"
            why = (
                f"are not in HF_HOME, {one_line(constants.HF_HOME)}, and {reason}; copy it from a machine that has them"
            )
        raise NoInputError(f"encoder {encoder}: imagenet weights {why}; or {INSTEAD}") from error
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_answers(address: str, timeout_s: float) -> bool:
    """Return whether anything at `address` answers in time; a refusal counts, a proxy that reaches nothing does not."""
    answered: list[bool] = []
    knock = threading.Thread(target=lambda: answered.append(_knock(address, timeout_s)), daemon=True)
    knock.start()
    knock.join(timeout_s + 2)  # resolving a name has no timeout of its own
    return bool(answered and answered[0])


def load_encoder_weights(encoder: nn.Module, path: Path, bands: int) -> None:
    """Load a local file of weights into `encoder`, in place.

    Names may carry the prefix of a whole model (an aerialseg model file works) and timm's dots or underscores; a
    classifier is left out; a first convolution of three bands is adapted to `bands` as timm does. Raises NoInputError
    when there is no such file, ModelError when tensors are missing, unexpected or of another shape.
    """
    import torch
    from timm.models import adapt_input_conv

    if not is_regular(path):
        raise NoInputError(f"{one_line(path)}: no such file of encoder weights; {INSTEAD}")
    given = {_plain(name): tensor for name, tensor in _without_prefix(read_tensors(path)).items()}
    wanted = {_plain(name): tensor for name, tensor in encoder.state_dict().items()}
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    beside = (name for name in given if not name.endswith("num_batches_tracked") and not name.startswith(HEADS))
    unexpected = [name for name in beside if name not in wanted]
    if missing or unexpected:
        raise ModelError(
            f"{one_line(path)}: is not a file of this encoder's weights: {_some('missing', missing)},"
            f" {_some('unexpected', unexpected)}; give the weights of the encoder named in the configuration"
        )
    with torch.no_grad():
        for name, target in wanted.items():
            if name not in given:
                continue
            source = given[name]
            if source.dim() == 4 and source.shape[1] == 3 and target.shape[1:2] == (bands,) and bands != 3:
                source = adapt_input_conv(bands, source)
            if source.shape != target.shape:
                raise ModelError(
                    f"{one_line(path)}: tensor {one_line(name)} is {tuple(source.shape)}, expected"
                    f" {tuple(target.shape)}; give the weights of the encoder named in the configuration"
                )
            target.copy_(source)


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the named tensors of a .safetensors file or of a state dict that torch saved, on the CPU.

    A state dict may lie inside a checkpoint, under one of `NESTED`. Nothing in the file is run; raises ModelError when
    it is damaged or holds more than plain values.
    """
    import torch
    from safetensors.torch import load_file

    try:
        with open_regular(path) as stream:
            plain = stream.read(9)[8:] == b"{"  # safetensors: the header's length in eight bytes, then JSON
        if plain:
            return load_file(path)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # about pickles of another protocol
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes bring the reader of pickles down in many ways
        refused = isinstance(error, pickle.UnpicklingError)  # torch's own words advise to load it all the same
        reason = "it holds other things, or is damaged" if refused else first_line(error)
        raise ModelError(
            f"{one_line(path)}: cannot be read as tensors only ({reason}); what holds anything else is refused, for it"
            " can run code: save torch.save(network.state_dict(), FILE)"
        ) from error
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ModelError(f"{one_line(path)}: holds {type(content).__name__}, expected named tensors")
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def _without_prefix(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Keep the encoder's part of a whole model; a file of an encoder alone stays as it is."""
    for prefix in PREFIXES:
        inside = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if inside:
            return inside
    return tensors


def _plain(name: str) -> str:
    """Spell a tensor's name alike for timm's plain networks and its feature extractors (stages.0 and stages_0)."""
    return name.removeprefix("model.").replace(".", "_")


def _some(label: str, names: list[str]) -> str:
    shown = [one_line(name) for name in sorted(names)[:3]] + (["..."] if len(names) > 3 else [])
    return f"{len(names)} {label}" + (f" ({', '.join(shown)})" if names else "")


def _knock(address: str, timeout_s: float) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=timeout_s):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the client may know certificates that Python does not
    except (OSError, ValueError):
        return False
