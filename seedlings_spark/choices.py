"""What can be chosen, and the limits of a file: written down once, for the options and for what they are for."""

# What cameras, scanners, web pages and annotation tools write. Of an animation the first frame counts.
FORMATS = ("png", "jpeg", "webp", "bmp", "tiff", "gif")
# crop: the largest centred rectangle of the target's shape, so that a leaf keeps its proportions and no
#   pixel is invented; the default, as plants stand in the middle of their pictures
# pad: the whole picture, centred, with black bars
# stretch: the whole picture, squeezed
ASPECTS = ("crop", "pad", "stretch")
# 8000 x 8000, above any camera in common use. Decoding takes 4 to 12 bytes of memory a pixel (WebP 16), so
# 0.3 to 1 GB at this limit, 0.1 GB for a photograph of 12 million; a JPEG far larger than its target less (a
# progressive one keeps 6 bytes a pixel besides, 8 where it has four colours).
MAX_PIXELS = 64_000_000
# An uncompressed 20-megapixel picture still fits.
MAX_BYTES = 64 * 1024 * 1024

SPLIT_POLICIES = ("auto", "hash", "stratified", "given")
CONFLICT_POLICIES = ("error", "drop")
LEAK_POLICIES = ("error", "drop", "keep")
NEAR_DUPLICATE_POLICIES = ("ignore", "report", "group")

# Networks by name, and the least height and width of the images that each takes, in pixels: our own, then those of
# `keras.applications`, then EfficientNet-Lite.
OWN_NETWORKS = {"plain": 32, "residual": 32}
_OF_KERAS = """
ConvNeXtTiny ConvNeXtSmall ConvNeXtBase ConvNeXtLarge ConvNeXtXLarge DenseNet121 DenseNet169 DenseNet201
EfficientNetB0 EfficientNetB1 EfficientNetB2 EfficientNetB3 EfficientNetB4 EfficientNetB5 EfficientNetB6 EfficientNetB7
EfficientNetV2B0 EfficientNetV2B1 EfficientNetV2B2 EfficientNetV2B3 EfficientNetV2S EfficientNetV2M EfficientNetV2L
InceptionResNetV2 InceptionV3 MobileNet MobileNetV2 MobileNetV3Small MobileNetV3Large NASNetMobile NASNetLarge
ResNet50 ResNet101 ResNet152 ResNet50V2 ResNet101V2 ResNet152V2 VGG16 VGG19 Xception
"""
APPLICATIONS = {
    **dict.fromkeys(_OF_KERAS.split(), 32),
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "Xception": 71,
}
LITE_NETWORKS = {f"efficientnet-lite{size}": 32 for size in range(3)}
BACKBONES = {**APPLICATIONS, **LITE_NETWORKS}
NETWORKS = {**OWN_NETWORKS, **BACKBONES}
NETWORK_FILES = (".keras", ".json")
SCALERS = ("auto", "channel", "pixel", "none")
# What `--fine-tune` may be beside a number of layers: the last is the head first, then all.
FINE_TUNED = ("head", "all", STAGED := "staged")
# What the head of a backbone is given, if it alone is trained: the average of the last layer, or of each stage's last
# layer average and maximum.
HEAD_ON = (LAST := "last", STAGES := "stages")
# Of `staged`: the learning rate of the first layer as a share of the last one's.
STAGED_DECAY = 0.1
# What `--weights` may be beside the path of a file.
NO_WEIGHTS, IMAGENET = "none", "imagenet"
WEIGHT_FILES = (".keras", ".h5", ".safetensors")  # .weights.h5 and the older .h5

# Where the mean of a synchronous step is made.
EXCHANGES = ("driver", "workers", "auto")
MODES = (SYNCHRONOUS := "synchronous", "asynchronous", "hogwild")
# Of workers: as many as there is room for, up to the number of shards.
AUTO = "auto"
RULES = ("downpour", "adag", "dynsgd", "aeasgd", "eamsgd")
# Of `train`; it stands for that of the corpus' kind.
DEFAULT_LOSS = "sparse_categorical_crossentropy"
SCHEDULES = ("constant", "cosine", "one-cycle", "step", "plateau")
# Random changes to training images, in the order in which they are applied.
AUGMENTATIONS = (
    *("mirror", "flip", "turn", "rotate", "shift", "shear", "zoom"),
    *("brightness", "contrast", "hue", "blur", "cutout"),
)
# Those by which an image has 1, 2, 4 or 8 views; features of all of them can be computed once.
FEW_VIEWS = ({"none"}, {"mirror"}, {"flip"}, {"mirror", "flip"}, {"flip", "turn"}, {"mirror", "flip", "turn"})
# By which images are ordered that come in by rising difficulty: their network's loss, or the length of their files.
CURRICULA = ("none", BY_LOSS := "loss", "length")
PRECISIONS = ("float32", "mixed_bfloat16", "auto")
# Views of an image whose probabilities are averaged: itself, mirrored, mirrored both ways, with quarter turns.
VIEWS = (1, 2, 4, 8)
# auto: int8 where the version has been quantised, else what the engine computes in
SCORING_PRECISIONS = ("auto", "float32", INT8 := "int8")
# auto: ONNX Runtime where the version has a network for it and no GPU is assigned, else TensorFlow
# openvino: for those who install it; in bfloat16 where the version has that precision
ONNXRUNTIME, OPENVINO, TENSORFLOW = "onnxruntime", "openvino", "tensorflow"
ENGINES = ("auto", ONNXRUNTIME, OPENVINO, TENSORFLOW)
# Forms of a version for other places: see `exports`.
EXPORTS = ("onnx", "savedmodel", "litert", "openvino", "coreml", "web", "triton", "mlflow")
