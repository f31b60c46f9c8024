"""What options and their values are called elsewhere, for mistyped ones."""

import difflib
import re
from collections.abc import Iterable, Mapping

# What options are called elsewhere, by Keras, Spark, Elephas, scikit-learn; the first that a job has is meant.
ALSO: Mapping[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "step_size", "eta", "alpha", "rate"),
    "batch_size": ("bs", "batch", "batchsize", "minibatch"),
    "epochs": ("nb_epoch", "num_epochs", "n_epochs", "max_iter", "iterations", "rounds"),
    "num_workers": ("workers", "n_workers", "nw", "num_executors", "parallelism", "n_jobs", "num_tasks"),
    "optimizer": ("opt", "master_optimizer", "worker_optimizer"),
    "loss": ("criterion", "loss_function", "objective", "master_loss"),
    "network": ("architecture", "arch", "backbone", "model", "model_path"),
    "model_version": ("version", "model_tag"),
    "name": ("model_name",),
    "store": ("model_store", "model_dir", "registry", "model_path"),
    "image_size": ("size", "img_size", "target_size", "input_shape", "resize"),
    "images": ("input", "input_dir", "data", "data_dir", "dataset", "image_dir", "folder", "path", "source"),
    "corpus": ("input", "input_dir", "data", "data_dir", "dataset", "train_data"),
    "output": ("out", "output_dir", "dest", "destination", "target", "result", "results"),
    "report": ("out", "output", "output_dir", "dest", "destination"),
    "run": (
        "log_dir",
        "logdir",
        "run_dir",
        "checkpoint",
        "checkpoint_path",
        "checkpoint_dir",
        "resume",
        "output",
    ),
    "split_shares": ("split", "val_split", "validation_split", "test_size", "validation_size"),
    "split": ("subset", "dataset_split"),
    "seed": ("random_state", "random_seed", "rng"),
    "top_k": ("topk", "k", "top"),
    "formats": ("ext", "extension", "extensions", "format", "file_types"),
    "class_weight": ("weights", "class_weights", "balance"),
    "precision": ("dtype", "mixed_precision", "fp16", "amp"),
    "server_port": ("port", "parameter_server_port"),
    "patience": ("early_stopping", "early_stopping_patience"),
    "augment": ("augmentation", "augmentations", "transforms"),
    "clip_norm": ("clipnorm", "global_clipnorm", "grad_clip", "max_grad_norm"),
    "layer_decay": ("llrd", "lr_layer_decay", "layerwise_lr_decay"),
    "tta": ("test_time_augmentation", "views"),
    "debug": ("verbose", "v", "vv", "trace", "traceback"),
    "log": ("log_format", "log_level", "logging"),
    "config": ("conf_file", "config_file", "cfg", "settings"),
}
_ALSO_VALUES: Mapping[str, tuple[str, ...]] = {
    "synchronous": ("bsp", "mirrored", "allreduce"),
    "asynchronous": ("ps", "parameter_server", "async_ps"),
    "jpeg": ("jpg", "jfif"),
    "tiff": ("tif",),
    "mixed_bfloat16": ("bf16", "bfloat16", "mixed"),
    "float32": ("fp32", "float", "single", "full"),
    "validation": ("val", "valid", "dev"),
    "flip": ("mirror", "hflip", "horizontal_flip"),
    "rotate": ("rotation", "random_rotation"),
    "shift": ("translate", "translation", "crop"),
    "cutout": ("erase", "erasing", "random_erasing"),
    "one-cycle": ("onecycle", "1cycle"),
    "constant": ("none", "fixed"),
    "plateau": ("reduce_lr_on_plateau",),
    "none": ("no", "off", "false"),
    "stratified": ("strata", "balanced"),
    "promote": ("activate", "publish", "set"),
    "rollback": ("revert", "undo"),
    "list": ("ls", "show"),
}


def suggestion(name: str, known: Iterable[str]) -> str:
    """Which of the known names was probably meant: as it is called elsewhere, begun, or mistyped; "" for none."""
    known, spelt = list(known), _spelt(name)
    for one in known:
        if spelt == _spelt(one) or spelt in {**ALSO, **_ALSO_VALUES}.get(_spelt(one), ()):
            return one
    begun = [one for one in known if len(spelt) > 1 and _spelt(one).startswith(spelt)]
    if len(begun) == 1:
        return begun[0]
    initials = [one for one in known if "_" in _spelt(one) and spelt == _initials(one)]
    if len(initials) == 1:
        return initials[0]
    # Two letters have something in common with any name.
    by_spelling = {_spelt(one): one for one in known}
    near = difflib.get_close_matches(spelt, by_spelling, 1, 0.7) if len(spelt) > 2 else []
    return by_spelling[near[0]] if near else ""


def _spelt(name: str) -> str:
    """`--learning-rate`, `-learningRate` and `Learning_Rate` are one name."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.lstrip("-"))
    return words.replace("-", "_").replace(" ", "_").lower()


def _initials(name: str) -> str:
    return "".join(word[:1] for word in _spelt(name).split("_"))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The suggestion as a question; "" for none."""
    near = suggestion(name, known)
    return f"Did you mean {near}?" if near else ""


def nearest(name: str, known: Iterable[str], most: int = 5) -> str:
    """Of many known names those that are written most alike, the nearest first, as a question; "" for none."""
    by_spelling = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_spelling, most, 0.5)
    return f"Did you mean {' or '.join(by_spelling[one] for one in near)}?" if near else ""
