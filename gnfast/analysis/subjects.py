"""Critics to analyse: of a training run, or any module that can be imported."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gnfast.analysis.measurements import Subject
from gnfast.config.config import Config
from gnfast.data import ImageDataset, to_float
from gnfast.data import load as load_data
from gnfast.engine import reference
from gnfast.errors import InputError, first_line
from gnfast.io.files import expanded, open_regular
from gnfast.io.objects import load_object
from gnfast.io.tensors import is_state, load_tensors
from gnfast.losses import LOSSES, domain_scaled
from gnfast.measure.gradient_norms import near
from gnfast.models import Pair
from gnfast.runs.checkpoint import Place, RunError, locate
from gnfast.train.evaluate import load_split
from gnfast.train.networks import build_networks, require_fit, sample
from gnfast.train.saved import open_saved


def of_run(
    folder: Path, *, best: bool = False, data: str = "", count: int, device: torch.device, seed: int = 0
) -> Subject:
    """The critic of a run's checkpoint, with real images of its data set and images of its generator.

    Args:
        folder: the run folder, whose newest checkpoint is taken, or RUN/checkpoints/FILE.pt.
        best: take the run folder's best checkpoint.
        data: another source of the images than the run's config names, of the same size.
        count: images of each kind, at least 2; fewer if the data set has fewer.
        device: where to measure.
        seed: of the choice of images and of the latents.

    Raises:
        RunError: no run, or no readable checkpoint.
        ValueError: the data do not fit the critic, or lack the classes that it takes.
    """
    place = locate(folder, best) or Place(folder)
    _, config, state = open_saved(place)
    weights = {name: state[name] for name in ("generator", "critic")}
    try:
        require_fit(config, **weights)
    except ValueError as error:
        raise RunError(f"{folder}: the checkpoint does not fit its settings: {error}") from error
    networks = build_networks(config)
    for net, own in zip(networks, weights.values(), strict=True):
        net.load_state_dict(own)
    name = f"{place.run.resolve().name}, step {state['step']}"
    found = _of_networks(name, config, networks, data or config.data, count, device, seed)
    return dataclasses.replace(found, step=state["step"])


def untrained(name: str, config: Config, *, count: int, device: torch.device, seed: int = 0) -> Subject:
    """The critic that a run with these settings begins with; the rest is as for `of_run`."""
    return _of_networks(name, config, build_networks(config), config.data, count, device, seed)


def family(config: Config) -> str:
    """The loss of a run, and what it regularises the critic by, in words."""
    own = {
        config.method: config.method != "none",
        "spectral norm": config.spectral_norm,
        f"weight norm ({config.weight_norm})": config.weight_norm != "none",
        "clipping": config.weight_clip > 0,
        config.penalty: config.penalty != "none",
    }
    return ", ".join([config.loss, *(name for name, used in own.items() if used)])


def _of_networks(
    name: str, config: Config, networks: Pair, source: str, count: int, device: torch.device, seed: int
) -> Subject:
    generator, critic = (net.to(device) for net in networks)
    images = dataclasses.replace(config, data=source, download=False)
    dataset = load_split(images, config.split, progress=False, told=source == config.data)
    real, labels = _chosen(dataset, count, seed)
    labels = _fitting(labels, source, config.classes) if config.classes else None
    z = torch.randn(len(real), config.z_dim, generator=torch.Generator().manual_seed(seed))
    fakes = []
    for start in range(0, len(z), config.batch_g):
        given = (z,) if labels is None else (z, labels)
        inputs = (tensor[start : start + config.batch_g].to(device) for tensor in given)
        fakes.append(sample(generator, *inputs, batch_statistics=config.sample_bn == "batch").cpu())
    method = None if config.method == "none" else config.method
    loss = domain_scaled(LOSSES[config.loss], config.alpha)
    options = {"method": method, "tau": config.tau, "eps": config.eps, "loss": loss, "labels": labels}
    options["family"] = family(config)
    return _checked(Subject(name, critic.eval(), real, torch.cat(fakes), **options), source)


def of_module(
    spec: str, *, data: str, fakes: str, weights: str, count: int, device: torch.device, seed: int, **normaliser: Any
) -> Subject:
    """An imported critic at images of a data set.

    Args:
        spec: "module:name" of a module, or of a class or function that makes one without arguments.
        data, fakes: sources of real and generated images, as `gnfast.data.load` takes them; no generated ones if empty.
        weights: file with its state dict (.pt or .safetensors); as built if empty.
        count, device, seed: as for `of_run`.
        normaliser: `method`, `tau` and `eps`, as in `gnfast.normalize_gradient`.

    Raises:
        ValueError: it cannot be imported, is not a critic, is not differentiable, or the data do not fit it.
    """
    net = _imported(spec)
    if weights:
        try:
            net.load_state_dict(_state(expanded(weights)))
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = str(error).split("\n")[-1].strip()
            raise ValueError(f"--weights: {weights} does not fit {spec}: {reason}") from error
    real, _ = _chosen(load_data(data, progress=False), count, seed)
    fake = None
    if fakes:
        same = {"resolution": real.shape[-1], "channels": real.shape[1]}
        fake, _ = _chosen(load_data(fakes, **same, progress=False), len(real), seed)
        real = real[: len(fake)]
    return _checked(Subject(spec, net.to(device).eval(), real, fake, **normaliser), data)


def _imported(spec: str) -> nn.Module:
    net = load_object(spec, "--net")
    try:
        net = net if isinstance(net, nn.Module) else net()
    except TypeError as error:
        message = f"--net: {spec} cannot be built without arguments ({error}); name a function that can"
        raise ValueError(message) from error
    if not isinstance(net, nn.Module):
        raise ValueError(f"--net: {spec} made a {type(net).__name__}, wanted a torch.nn.Module")
    return net


def _state(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        open_regular(path).close()
        try:
            return load_file(path)
        except Exception as error:  # Damaged bytes lead to more than SafetensorError.
            raise InputError(f"{path} is damaged or not a safetensors file ({error})") from error
    found = load_tensors(path)
    if not is_state(found):
        raise InputError(f"{path}: holds a {type(found).__name__}, wanted a state dict, names to tensors")
    return found


def _chosen(dataset: ImageDataset, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Images of a data set, and their labels where it has any."""
    if count < 2:
        raise ValueError(f"--n: got {count}, wanted at least 2 images")
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count]
    labels = None if dataset.labels is None else dataset.labels[chosen].long()
    # On the CPU: 50 000 of each kind need not fit a GPU.
    return to_float(dataset.images[chosen], torch.device("cpu")), labels


def _fitting(labels: Tensor | None, source: str, classes: int) -> Tensor:
    if labels is None or int(labels.max()) >= classes:
        found = "no classes" if labels is None else f"a class {int(labels.max())}"
        raise ValueError(f"--data: {source} has {found}, wanted classes 0 to {classes - 1}, which the critic takes")
    return labels


def _checked(subject: Subject, source: str) -> Subject:
    """The subject, once a forward and an input gradient of two images have worked."""
    x, *args = (near(subject.critic, tensor[:2]) for tensor in subject.given(subject.real))
    what = f"{subject.name}: {type(subject.critic).__name__}"
    try:
        with torch.no_grad():
            f = subject.critic(x, *args)
    except (RuntimeError, ValueError, TypeError) as error:
        wrong = f"images of {source}, {tuple(x.shape[1:])}, do not fit the critic ({what})"
        raise ValueError(f"--data: {wrong}: {first_line(error)}") from error
    if not isinstance(f, Tensor) or f.numel() != len(x):
        got = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(f"{what} gives {got} for {len(x)} images, wanted one logit each")
    try:
        reference.value_and_input_grad(subject.critic, x, *args)
    except (RuntimeError, InputError) as error:
        raise ValueError(f"{what} is not differentiable with respect to its input: {first_line(error)}") from error
    return subject
