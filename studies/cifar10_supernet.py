"""Trains the CIFAR-10 supernet of the package: first a teacher, then every network it teaches.

python studies/cifar10_supernet.py --data folder:PATH --run runs/first --minutes 9
python studies/cifar10_supernet.py --data folder:PATH --run runs/cifar10 --start runs/first

The teacher is a residual network of 6.6 million parameters, 13 times as many as the supernet has;
it takes a minute and a half on a GPU. All networks of the supernet learn what it says of mixed
images. A supernet that is there is trained for longer with `--start`: all choices are open from
the first step on, the rate rises and falls once more, every image is mixed, weights decay twice as
fast, and the teacher says the mean of an image and its mirror image. A stopped training goes on
where it was. Weights learn from training images alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import apq_optuna as apq
from apq_optuna.data import ImageData, mixed_images, mixed_labels
from apq_optuna.supernet import accuracy


class Residual(nn.Module):
    """x plus two convolutions of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolved(channels, channels), convolved(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def convolved(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def teacher(classes: int = 10) -> nn.Module:
    """A residual network of nine layers for images of 32 x 32 pixels."""
    return nn.Sequential(
        convolved(3, 64), convolved(64, 128, pool=True), Residual(128),
        convolved(128, 256, pool=True), convolved(256, 512, pool=True), Residual(512),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(512, classes),
    )  # fmt: skip


class Mirrored(nn.Module):
    """The mean of what a network says of images and of their mirror images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        said: Tensor = (self.net(images) + self.net(images.flip(3))) / 2
        return said


def train_teacher(
    net: nn.Module, data: ImageData, file: Path, epochs: int, device: str, batch: int = 512
) -> None:
    """SGD with one rise and fall of the rate; half of the images are mixed."""
    net.to(device, memory_format=torch.channels_last).train()
    kept = data.on(device)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = epochs * max(1, len(data.train) // batch)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=steps + 1)
    started = time.perf_counter()
    for epoch in range(epochs):
        for images, labels in kept.training_batches(batch, generator, device=device):
            images, own = mixed_images(images, 0.5, generator)
            targets = mixed_labels(labels, own, data.num_classes)
            with torch.autocast(device.split(":")[0], torch.bfloat16):
                logits = net(images)
            loss = F.cross_entropy(logits.float(), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rates.step()
        if epoch % 5 == 4 or epoch == epochs - 1:
            print(
                f"teacher, epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}, "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
    print(f"teacher: search-validation accuracy {accuracy(net, kept):.4f}")
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.cpu().contiguous() for name, value in net.state_dict().items()}
    save_file(state, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)  # whole or not at all


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder:PATH of train/CLASS/, test/CLASS/")
    parser.add_argument("--run", required=True, type=Path, help="folder of supernet and teacher")
    parser.add_argument("--start", help="RUN or pretrained:NAME: a supernet to train for longer")
    parser.add_argument("--teacher-epochs", type=int, default=110)
    parser.add_argument("--batch", type=int, default=1024)
    how = {"minutes": (9.0, 11.8), "rate": (0.6, 0.5), "decay": (2e-4, 4e-4), "mixed": (0.8, 1.0)}
    for name, (first, longer) in how.items():
        text = f"default: {first:g}, with --start {longer:g}"
        parser.add_argument(f"--{name}", type=float, help=text)
    arguments = parser.parse_args()
    for name, defaults in how.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, defaults[bool(arguments.start)])
    if Path(arguments.start or "").resolve() == arguments.run.resolve():
        parser.error("--start and --run are the same folder")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = apq.load_data(arguments.data)
    torch.manual_seed(0)
    learned = teacher(data.num_classes)
    file = arguments.run / "teacher.safetensors"
    earlier = Path(arguments.start or "") / "teacher.safetensors"
    if not file.exists() and arguments.start and earlier.exists():
        file = earlier
    if file.exists():
        print(f"teacher: the one in {file}")
    else:
        train_teacher(learned, data, file, arguments.teacher_epochs, device)
    learned.load_state_dict(load_file(file))
    shares = (0.15, 0.05, 0.1, 0.7)
    if arguments.start:
        net = apq.OnceForAllNet.load(arguments.start)
        shares = (0.0, 0.0, 0.0, 1.0)
        learned = Mirrored(learned.to(memory_format=torch.channels_last))
    else:
        torch.manual_seed(0)
        net = apq.OnceForAllNet(apq.SearchSpace.preset("cifar10"))
    plan = apq.TrainingPlan(
        minutes=arguments.minutes, batch_size=arguments.batch, learning_rate=arguments.rate,
        weight_decay=arguments.decay, random_subnets=2, shares=shares, mixed=arguments.mixed,
        start=net.weights_hash if arguments.start else "",
    )  # fmt: skip
    apq.train_supernet(net, data, plan, arguments.run, teacher=learned, progress=True)
