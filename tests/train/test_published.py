"""Checkpoints of the papers' code: networks with their keys and layer order, written out here, against gnfast's."""

import zipfile
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import models
from gnfast.io.tensors import load_tensors
from gnfast.train.published import load_published


class Net(nn.Module):
    """Named parts and a function of them."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *args):
        return self.run(self, *args)


def legacy(layer):
    return nn.utils.spectral_norm(layer, eps=1e-6)


def same(layer):
    return layer


def conv(i, o, k=3):
    return nn.Conv2d(i, o, k, padding=k // 2)


def seq(*layers):
    return nn.Sequential(*layers)


# GN-GAN (and PGN-GAN): the parts are called linear, blocks, output; residual and shortcut.

WIDTHS = {
    32: ((256,) * 4, (128,) * 4, 2),
    48: ((512, 256, 128, 64), (64, 128, 256, 512), 4),
    128: ((1024, 1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024, 1024), 5),
}


def steps(widths):
    return list(pairwise(widths))


def gn_generator_block(i, o, residual="residual"):
    parts = {
        "shortcut": seq(nn.Upsample(scale_factor=2), conv(i, o, 1)),
        residual: seq(
            nn.BatchNorm2d(i),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            conv(i, o),
            nn.BatchNorm2d(o),
            nn.ReLU(),
            conv(o, o),
        ),
    }
    return Net(lambda self, x: getattr(self, residual)(x) + self.shortcut(x), **parts)


def gn_resnet(side):
    g_widths, d_widths, downs = WIDTHS[side]
    start = side >> (len(g_widths) - 1)
    generator = Net(
        lambda self, z: self.output(self.blocks(self.linear(z).view(len(z), g_widths[0], start, start))),
        linear=nn.Linear(128, start * start * g_widths[0]),
        blocks=seq(*(gn_generator_block(i, o) for i, o in steps(g_widths))),
        output=seq(nn.BatchNorm2d(g_widths[-1]), nn.ReLU(), conv(g_widths[-1], 3), nn.Tanh()),
    )
    critic = Net(
        lambda self, x: self.linear(self.model(x).flatten(1)),
        model=seq(*gn_critic_blocks(d_widths, downs), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        linear=nn.Linear(d_widths[-1], 1),
    )
    return generator, critic


def gn_critic_blocks(widths, downs, wrap=same, residual="residual", block=Net):
    def add(self, x):
        return getattr(self, residual)(x) + self.shortcut(x) * getattr(self, "shortcut_scale", 1)

    first = {
        "shortcut": seq(nn.AvgPool2d(2), wrap(conv(3, widths[0], 1))),
        residual: seq(wrap(conv(3, widths[0])), nn.ReLU(), wrap(conv(widths[0], widths[0])), nn.AvgPool2d(2)),
    }
    yield block(add, **first)
    for k, (i, o) in enumerate(steps(widths), start=1):
        pool = [nn.AvgPool2d(2)] if k < downs else []
        yield block(
            add,
            **{
                "shortcut": seq(*([wrap(conv(i, o, 1))] if i != o or pool else []), *pool),
                residual: seq(nn.ReLU(), wrap(conv(i, o)), nn.ReLU(), wrap(conv(o, o)), *pool),
            },
        )


def gn_cnn_layers():
    deconvs = [
        layer
        for i, o in ((512, 256), (256, 128), (128, 64))
        for layer in (nn.ConvTranspose2d(i, o, 4, 2, 1), nn.BatchNorm2d(o), nn.ReLU())
    ]
    return nn.BatchNorm2d(512), nn.ReLU(), *deconvs, nn.ConvTranspose2d(64, 3, 3, 1, 1), nn.Tanh()


def gn_cnn_convs(wrap=same):
    layers = [wrap(conv(3, 64)), nn.LeakyReLU(0.1)]
    for i, o in ((64, 128), (128, 256), (256, 512)):
        layers += [wrap(nn.Conv2d(i, o, 4, 2, 1)), nn.LeakyReLU(0.1), wrap(conv(o, o)), nn.LeakyReLU(0.1)]
    return layers


def gn_cnn(side):
    m = side // 8
    generator = Net(
        lambda self, z: self.main(self.linear(z).view(len(z), 512, m, m)),
        linear=nn.Linear(128, m * m * 512),
        main=seq(*gn_cnn_layers()),
    )
    critic = Net(
        lambda self, x: self.linear(self.main(x).flatten(1)),
        main=seq(*gn_cnn_convs()),
        linear=nn.Linear(m * m * 512, 1),
    )
    return generator, critic


def conditional_norm(channels, condition):
    def run(self, x, c):
        gain, bias = self.gain(c).view(len(x), -1, 1, 1), self.bias(c).view(len(x), -1, 1, 1)
        return self.batchnorm2d(x) * (gain + 1) + bias

    bn = nn.BatchNorm2d(channels, affine=False)
    return Net(run, gain=condition(channels), bias=condition(channels), batchnorm2d=bn)


def big_block(i, o, condition, wrap, names):
    first, second = names

    def run(self, x, c):
        h = getattr(self, first)(self.bn1(x, c))
        return getattr(self, second)(self.bn2(h, c)) + self.shortcut(x)

    parts = {
        "bn1": conditional_norm(i, condition),
        first: seq(nn.ReLU(), nn.Upsample(scale_factor=2), wrap(conv(i, o))),
        "bn2": conditional_norm(o, condition),
        second: seq(nn.ReLU(), wrap(conv(o, o))),
        "shortcut": seq(nn.Upsample(scale_factor=2), wrap(conv(i, o, 1))),
    }
    return Net(run, **parts)


def gn_biggan(side=32):
    def generate(self, z, y):
        h = self.linear(z).view(len(z), 256, 4, 4)
        for block in self.blocks:
            h = block(h, y)
        return self.output_layer(h)

    def judge(self, x, y):
        h = self.blocks(x).sum((2, 3))
        return self.linear(h) + (self.embedding(y) * h).sum(1, keepdim=True)

    def embed(channels):
        return nn.Embedding(10, channels)

    blocks = [big_block(256, 256, embed, legacy, ("residual1", "residual2")) for _ in range(3)]
    generator = Net(
        generate,
        linear=legacy(nn.Linear(128, 4096)),
        blocks=nn.ModuleList(blocks),
        output_layer=seq(nn.BatchNorm2d(256), nn.ReLU(), legacy(conv(256, 3)), nn.Tanh()),
    )
    critic = Net(
        judge,
        blocks=seq(*gn_critic_blocks((256,) * 4, 2), nn.ReLU()),
        linear=nn.Linear(256, 1),
        embedding=nn.Embedding(10, 256),
    )
    return generator, critic


# Faster GN-GAN: one sequence `main`, residual branches `main` too, and a scale beside every weight of the critic.


class Scaled(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.module = nn.Module()
        self.layer = [layer]
        for name, value in layer.named_parameters():
            self.module.register_parameter(f"{name}_raw", nn.Parameter(value.detach().clone()))
            self.module.register_buffer(f"{name}_scale", torch.ones(()))
            self.module.register_buffer(f"{name}_norm", value.detach().norm())

    def rescale(self, before):
        self.module.weight_scale = torch.empty((), dtype=torch.float64).uniform_(0.6, 1.6)
        after = before * self.module.weight_scale
        if hasattr(self.module, "bias_raw"):
            self.module.bias_scale = after
        return after

    def forward(self, x):
        values = {
            name.removesuffix("_raw"): value * getattr(self.module, name.replace("_raw", "_scale"))
            for name, value in self.module.named_parameters()
        }
        return torch.func.functional_call(self.layer[0], values, (x,))


class ScaledBlock(Net):
    shortcut_scale = 1

    def rescale(self, before):
        after = rescale(self.main, before)
        self.shortcut_scale = after / rescale(self.shortcut, before)
        return after


def rescale(module, before):
    """As the code does it: in the order of the children, a block's two branches from the same start."""
    for child in module.children():
        before = child.rescale(before) if hasattr(child, "rescale") else rescale(child, before)
    return before


def faster_resnet(side):
    g_widths, d_widths, downs = WIDTHS[side]
    start = side >> (len(g_widths) - 1)
    generator = Net(
        lambda self, z: self.main(z),
        main=seq(
            nn.Linear(128, start * start * g_widths[0]),
            nn.Unflatten(1, (g_widths[0], start, start)),
            *(gn_generator_block(i, o, "main") for i, o in steps(g_widths)),
            nn.BatchNorm2d(g_widths[-1]),
            nn.ReLU(),
            conv(g_widths[-1], 3),
            nn.Tanh(),
        ),
    )
    blocks = gn_critic_blocks(d_widths, downs, Scaled, "main", ScaledBlock)
    tail = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Scaled(nn.Linear(d_widths[-1], 1)))
    return generator, Net(lambda self, x: self.main(x), main=seq(*blocks, *tail))


def faster_cnn(side):
    m = side // 8
    start = (nn.Linear(128, m * m * 512), nn.Unflatten(1, (512, m, m)))
    generator = Net(lambda self, z: self.main(z), main=seq(*start, *gn_cnn_layers()))
    tail = (nn.Flatten(), Scaled(nn.Linear(m * m * 512, 1)))
    return generator, Net(lambda self, x: self.main(x), main=seq(*gn_cnn_convs(Scaled), *tail))


def attention(channels, wrap):
    def run(self, x):
        q, k, v = self.q(x).flatten(2), F.max_pool2d(self.k(x), 2).flatten(2), F.max_pool2d(self.v(x), 2).flatten(2)
        weights = torch.einsum("bci,bcj->bij", q, k).softmax(2)
        return self.gamma * self.o(torch.einsum("bij,bcj->bci", weights, v).view(len(x), -1, *x.shape[2:])) + x

    def part(i, o):
        return wrap(nn.Conv2d(i, o, 1, bias=False))

    parts = {"q": part(channels, channels // 8), "k": part(channels, channels // 8)}
    parts |= {"v": part(channels, channels // 2), "o": part(channels // 2, channels)}
    result = Net(run, **parts)
    result.gamma = nn.Parameter(torch.tensor(0.5))
    return result


def faster_biggan(side):
    g_widths, d_widths, downs = {
        32: ((256,) * 4, (256,) * 4, 2),
        64: ((1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024), 4),
    }[side]
    shared, z_dim, classes = side > 32, 123 if side > 32 else 128, 7
    part = z_dim // len(g_widths) if shared else z_dim

    def condition(channels):
        return legacy(nn.Linear(128 + part, channels, bias=False)) if shared else nn.Embedding(classes, channels)

    layers = [legacy(nn.Linear(part, 16 * g_widths[0])), nn.Unflatten(1, (g_widths[0], 4, 4))]
    for k, (i, o) in enumerate(steps(g_widths), start=1):
        layers.append(big_block(i, o, condition, same, ("main1", "main2")))
        if shared and k == 4:
            layers.append(attention(o, legacy))
    layers += [nn.BatchNorm2d(g_widths[-1]), nn.ReLU(), legacy(conv(g_widths[-1], 3)), nn.Tanh()]

    def generate(self, z, y):
        conditions = [y] * (len(g_widths) - 1)
        if shared:
            label = self.shared_embedding(y)
            conditions = [torch.cat([label, z[:, part * k : part * (k + 1)]], 1) for k in range(1, len(g_widths))]
            z = z[:, :part]
        for layer in self.blocks:
            z = layer(z, conditions.pop(0)) if hasattr(layer, "bn1") else layer(z)
        return z

    def judge(self, x, y):
        h = self.main(x).sum((2, 3))
        return self.linear(h) + (self.embedding(y) * h).sum(1, keepdim=True)

    generator = Net(generate, blocks=nn.ModuleList(layers))
    if shared:
        generator.shared_embedding = nn.Embedding(classes, 128)
    first, *blocks = gn_critic_blocks(d_widths, downs, Scaled, "main", ScaledBlock)
    attended = [attention(d_widths[0], same)] if shared else []
    critic = Net(
        judge,
        main=seq(first, *attended, *blocks, nn.ReLU()),
        linear=Scaled(nn.Linear(d_widths[-1], 1)),
        embedding=Scaled(nn.Embedding(classes, d_widths[-1])),
    )
    return generator, critic


# mimicry: l1, block2, block3, ..., b5, c5; block1, ..., l5; every block with c1, c2, c_sc.


def mimicry_generator(widths, start):
    def block_run(self, x):
        def up(h):
            return F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)

        return self.c2(torch.relu(self.b2(self.c1(up(torch.relu(self.b1(x))))))) + self.c_sc(up(x))

    def block(i, o):
        return Net(
            block_run, c1=conv(i, o), c2=conv(o, o), b1=nn.BatchNorm2d(i), b2=nn.BatchNorm2d(o), c_sc=conv(i, o, 1)
        )

    last = len(widths) + 1
    parts = {f"block{k}": block(i, o) for k, (i, o) in enumerate(steps(widths), start=2)}
    parts |= {f"b{last}": nn.BatchNorm2d(widths[-1]), f"c{last}": conv(widths[-1], 3)}

    def run(self, z):
        h = self.l1(z).view(len(z), -1, start, start)
        for k in range(2, last):
            h = getattr(self, f"block{k}")(h)
        return torch.tanh(getattr(self, f"c{last}")(torch.relu(getattr(self, f"b{last}")(h))))

    return Net(run, l1=nn.Linear(128, start * start * widths[0]), **parts)


def mimicry_critic(widths, downs, wrap):
    def first_run(self, x):
        return F.avg_pool2d(self.c2(torch.relu(self.c1(x))), 2) + self.c_sc(F.avg_pool2d(x, 2))

    def block(i, o, down):
        def run(self, x):
            residual = self.c2(torch.relu_(self.c1(torch.relu_(x))))
            shortcut = self.c_sc(x) if hasattr(self, "c_sc") else x
            return F.avg_pool2d(residual, 2) + F.avg_pool2d(shortcut, 2) if down else residual + shortcut

        shortcut = {"c_sc": wrap(conv(i, o, 1))} if down or i != o else {}
        return Net(run, c1=wrap(conv(i, i)), c2=wrap(conv(i, o)), **shortcut)

    w = widths[0]
    parts = {"block1": Net(first_run, c1=wrap(conv(3, w)), c2=wrap(conv(w, w)), c_sc=wrap(conv(3, w, 1)))}
    parts |= {f"block{k}": block(i, o, k <= downs) for k, (i, o) in enumerate(steps(widths), start=2)}
    last = len(widths) + 1

    def run(self, x):
        for k in range(1, last):
            x = getattr(self, f"block{k}")(x)
        return getattr(self, f"l{last}")(torch.relu_(x).sum((2, 3)))

    return Net(run, **parts, **{f"l{last}": wrap(nn.Linear(widths[-1], 1))})


def stir(net):
    """In double precision, with biases, batch norms and averages that are not what they were made with."""
    net.double()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith(("weight_u", "weight_v")):
                value.copy_(F.normalize(value, dim=0))
            elif value.ndim == 1:
                value.uniform_(0.5, 1.5) if "running_var" in name or "weight" in name else value.normal_(std=0.3)
    return net


def save(path, generator, critic, keys, **extra):
    """A file as the code writes it; the moving average is told from the generator by its first bias."""
    average = OrderedDict((name, value.clone()) for name, value in generator.state_dict().items())
    next(value for name, value in average.items() if name.endswith("bias")).add_(0.25)
    states = dict(zip(keys, (generator.state_dict(), average, critic.state_dict()), strict=True))
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))]).state_dict()
    torch.save({**states, "optim_G": optimizer, "best_FID": np.float64(12.5), "step": 7, **extra}, path)


def assert_same_networks(found, generator, critic, *, classes=0, z_dim=128):
    """The networks that the states are loaded into compute what the code's compute, with running statistics."""
    arguments = {name: found[name] for name in ("resolution", "channels", "z_dim", "classes")}
    # Large networks take long to initialise; small ones with spectral normalisation take longer without data.
    with torch.device("cpu" if found["resolution"] == 32 else "meta"):
        g, d = models.build(found["model"], **arguments)
        d = gnfast.spectral_norm_(d) if found["spectral_norm"] else d
    assert (found["z_dim"], found["classes"]) == (z_dim, classes)
    labels = (torch.randint(classes, (2,)),) if classes else ()
    with torch.no_grad():
        if generator is not None:
            g.load_state_dict(found["generator"], assign=True)
            z = torch.randn(2, z_dim, dtype=torch.float64)
            torch.testing.assert_close(g.eval()(z, *labels), generator.eval()(z, *labels), rtol=1e-8, atol=1e-8)
        if critic is not None:
            d.load_state_dict(found["critic"], assign=True)
            x = torch.randn(2, 3, found["resolution"], found["resolution"], dtype=torch.float64)
            logits = critic.eval()(x.clone(), *labels)
            assert logits.abs().min() > 1e-3
            torch.testing.assert_close(d.eval()(x, *labels), logits, rtol=1e-8, atol=0)


KEYS = {"GN-GAN": ("net_G", "ema_G", "net_D"), "Faster GN-GAN": ("G", "G_ema", "D")}


@pytest.mark.parametrize(
    ("source", "model", "side", "make", "classes"),
    [
        ("GN-GAN", "dcgan", 48, gn_cnn, 0),
        ("GN-GAN", "resnet", 32, gn_resnet, 0),
        ("GN-GAN", "resnet", 48, gn_resnet, 0),
        ("GN-GAN", "biggan", 32, gn_biggan, 10),
        ("Faster GN-GAN", "dcgan", 48, faster_cnn, 0),
        ("Faster GN-GAN", "resnet", 32, faster_resnet, 0),
        ("Faster GN-GAN", "biggan-faster", 32, faster_biggan, 7),
        ("Faster GN-GAN", "biggan-faster", 64, faster_biggan, 7),
    ],
)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_networks_compute_what_the_codes_do(source, model, side, make, classes, tmp_path):
    torch.manual_seed(0)
    generator, critic = map(stir, make(side))
    rescale(critic, torch.ones(()))
    scales = [value.item() for name, value in critic.state_dict().items() if name.endswith("weight_scale")]
    assert len(set(scales)) == len(scales) and (len(scales) >= 8) == (source == "Faster GN-GAN")
    z_dim = 123 if (model, side) == ("biggan-faster", 64) else 128
    save(tmp_path / "model.pt", generator, critic, KEYS[source], fixed_z=torch.zeros(4, z_dim))
    found = load_published(tmp_path / "model.pt")
    assert (found["source"], found["model"], found["resolution"]) == (source, model, side)
    assert found["step"] == 7 and not found["spectral_norm"] and found["channels"] == 3
    assert_same_networks(found, generator, critic, classes=classes, z_dim=z_dim)
    [changed] = [key for key, value in found["ema"].items() if not torch.equal(value, found["generator"][key])]
    torch.testing.assert_close(found["ema"][changed], found["generator"][changed] + 0.25)


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_averaged_singular_vectors_come_back_to_length_one(tmp_path):
    """The codes average u and v like everything else, and never leave training mode, where length does not matter."""
    torch.manual_seed(0)
    generator = stir(gn_biggan()[0])
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    for name, value in state.items():
        if name.endswith(("weight_u", "weight_v")):
            value.mul_(0.7)
    torch.save({"ema_G": state, "step": 1}, tmp_path / "averaged.pt")
    found = load_published(tmp_path / "averaged.pt")
    assert found["generator"] is None and found["critic"] is None
    vectors = [value for name, value in found["ema"].items() if name.endswith(("_u", "_v"))]
    assert len(vectors) == 22
    assert all(value.norm().item() == pytest.approx(1, rel=1e-5) for value in vectors)
    assert_same_networks(found | {"generator": found["ema"]}, generator, None, classes=10)


@pytest.mark.parametrize("wrap", [same, nn.utils.spectral_norm], ids=["without spectral norm", "with"])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_mimicry_networks_compute_what_the_code_does(wrap, tmp_path):
    torch.manual_seed(0)
    generator = stir(mimicry_generator((256,) * 4, 4))
    critic = stir(mimicry_critic((128,) * 4, 2, wrap))
    for net, role in ((generator, "generator"), (critic, "critic")):
        path = tmp_path / f"{role}.pth"
        torch.save({"model_state_dict": net.state_dict(), "optimizer_state_dict": None, "global_step": 9}, path)
        found = load_published(path)
        assert (found["source"], found["model"], found["resolution"]) == ("mimicry", "mimicry-resnet", 32)
        assert found["step"] == 9 and found["spectral_norm"] == (role == "critic" and wrap is not same)
        assert_same_networks(found, *((net, None) if role == "generator" else (None, net)))


def shapes(net):
    """Its state, each tensor one number seen many times, which keeps a file small."""
    return {name: torch.rand(()).to(value.dtype).expand(value.shape) for name, value in net.state_dict().items()}


def test_mimicry_generators_are_exported_without_asking_in_the_mode_that_they_are_measured_in(tmp_path, capsys):
    from gnfast.cli import main
    from gnfast.train.export import load_generator

    with torch.device("meta"):
        generator = mimicry_generator((256,) * 4, 4)
    torch.save({"model_state_dict": shapes(generator), "global_step": 9}, tmp_path / "netG.pth")
    assert main(["export", str(tmp_path / "netG.pth")]) == 0
    file = capsys.readouterr().out.strip()
    assert file == str(tmp_path / "netG.safetensors")
    assert not load_generator(file).training
    assert main(["export", str(tmp_path / "netG.pth"), "--ema"]) == 2
    assert "holds raw, not ema weights" in capsys.readouterr().err


def test_mimicry_critics_of_48_and_64_pixels_have_the_same_weights(tmp_path):
    torch.manual_seed(0)
    critic = stir(mimicry_critic((64, 128, 256, 512, 1024), 4, same))
    torch.save({"model_state_dict": critic.state_dict()}, tmp_path / "netD.pth")
    with pytest.raises(ValueError, match="fits mimicry-resnet at 48 pixels and mimicry-resnet at 64 pixels; give `res"):
        load_published(tmp_path / "netD.pth")
    assert_same_networks(load_published(tmp_path / "netD.pth", resolution=48), None, critic)
    with pytest.raises(ValueError, match="mimicry-resnet at 128 pixels is nearest"):
        load_published(tmp_path / "netD.pth", resolution=128)
    with pytest.raises(ValueError, match=r"no such network at 256 pixels; keys: model\.0\.residual\.0"):
        load_published(tmp_path / "netD.pth", resolution=256)


def test_distributed_checkpoints_of_128_pixels(tmp_path):
    with torch.device("meta"):
        generator, critic = gn_resnet(128)
    states = {
        key: {f"module.{name}": value for name, value in shapes(net).items()}
        for key, net in (("net_G", generator), ("ema_G", generator), ("net_D", critic))
    }
    torch.save({**states, "fixed_z": (torch.zeros(2, 128), torch.zeros(2, 128)), "best_IS": 0}, tmp_path / "model.pt")
    found = load_published(tmp_path / "model.pt")
    assert (found["model"], found["resolution"], found["step"]) == ("resnet", 128, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "weights": {}}, "no known format; it has epoch, weights, wanted net_G"),
        (
            {"preset": "digits", "data": "", "config": {}, "state": {}},
            "a checkpoint of gnfast train; wanted its run folder",
        ),
        ([1, 2], "holds a list, wanted a dict of states"),
        ({"net_G": [1]}, "net_G is not a state dict of tensors"),
        ({"net_D": {"main.0.weight": 3}}, "net_D is not a state dict of tensors"),
    ],
)
def test_other_files_say_what_was_wanted(content, message, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        load_published(tmp_path / "model.pt")


def test_keys_and_shapes_that_do_not_match_are_listed(tmp_path):
    critic = gn_resnet(32)[1].state_dict()
    critic["extra.weight"] = torch.zeros(1)
    critic["linear.bias"] = torch.zeros(2)
    del critic["model.2.residual.1.bias"]
    torch.save({"net_D": critic}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="resnet at 32 pixels is nearest, and 3 keys do not match") as caught:
        load_published(tmp_path / "model.pt")
    for line in (
        "critic has extra.weight",
        "critic has linear.bias of (2,) instead of (1,)",
        "critic lacks model.2.residual.1.bias",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"main.0.weight": torch.zeros(()).expand(1 << 40)}, "numbers, more than any network here"),
        ({"main." + "9" * 5000 + ".gamma": torch.zeros(1)}, "net_D is not a state dict of tensors"),
        ({"main.0.weight_u": torch.zeros(3, dtype=torch.int64)}, "keys do not match"),
        ({"linear.bias": torch.zeros(1, dtype=torch.int64)}, "critic has linear.bias in torch.int64 instead"),
        ({"main.0.weight": torch.zeros(64, 0, 3, 3)}, "keys do not match"),
        ({"linear.bias": torch.zeros(1, device="meta")}, "read safely .*without data"),
        ({"linear.bias": torch.zeros(1).to_sparse()}, "read safely .*sparse"),
        ({3: torch.zeros(1)}, "net_D is not a state dict of tensors"),
    ],
)
def test_tensors_that_no_network_has(changed, message, tmp_path):
    with torch.device("meta"):
        critic = gn_cnn(32)[1]
    torch.save({"net_D": shapes(critic) | changed}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=rf"model\.pt.*{message}"):
        load_published(tmp_path / "model.pt")


@pytest.mark.parametrize("step", ["7", [7], float("nan"), torch.zeros(3)], ids=str)
def test_a_step_that_is_no_number_is_none(step, tmp_path):
    with torch.device("meta"):
        critic = gn_cnn(32)[1]
    torch.save({"net_D": shapes(critic), "step": step, "fixed_z": torch.zeros(3)}, tmp_path / "model.pt")
    assert load_published(tmp_path / "model.pt")["step"] is None


def test_numpys_dtypes_are_not_rebuilt_from_a_file(tmp_path):
    """A dtype with a state of somebody's choice reads and writes where it likes."""
    torch.save({"net_G": {}, "best_FID": np.float64(12.5)}, tmp_path / "model.pt")
    assert load_tensors(tmp_path / "model.pt") == {"net_G": {}, "best_FID": 12.5}
    torch.save({"best_FID": np.zeros(3)}, tmp_path / "array.pt")
    with pytest.raises(ValueError, match=r"array\.pt: .*_reconstruct"):
        load_tensors(tmp_path / "array.pt")


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    torch.save({"net_G": {}}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for info in plain.infolist():
            bomb.writestr(info.filename, plain.read(info), zipfile.ZIP_DEFLATED)
        bomb.writestr("plain/data/0", bytes(1 << 20), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"bomb\.pt: .*compressed or overlap"):
        load_tensors(tmp_path / "bomb.pt")


def test_files_that_run_code_are_refused(tmp_path):
    torch.save({"net_G": nn.Linear(2, 2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="read safely"):
        load_published(tmp_path / "model.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="read safely"):
        load_published(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError):
        load_published(tmp_path / "missing.pt")


def test_a_published_generator_is_sampled_and_exported(tmp_path, capsys):
    from gnfast.cli import main
    from gnfast.train.export import load_generator

    torch.manual_seed(0)
    generator, critic = map(stir, gn_resnet(32))
    path = tmp_path / "best_model.pt"
    save(path, generator, critic, KEYS["GN-GAN"])
    assert main(["export", str(path), "--raw"]) == 0
    loaded = load_generator(capsys.readouterr().out.strip()).eval().double()
    z = torch.randn(2, 128, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(z), generator.eval()(z), rtol=1e-6, atol=1e-6)
    assert main(["sample", str(path), "--n", "3", "--out", str(tmp_path / "fakes"), "--device", "cpu"]) == 0
    assert len(list((tmp_path / "fakes").iterdir())) == 3
    path.write_bytes(b"not a checkpoint")
    assert main(["sample", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
