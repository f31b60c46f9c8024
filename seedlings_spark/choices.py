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

MODES = ("synchronous", "asynchronous", "hogwild")
RULES = ("downpour", "adag", "dynsgd", "aeasgd", "eamsgd")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "mixed_bfloat16", "auto")
# auto: ONNX Runtime where the version has a network for it and no GPU is assigned, else TensorFlow
# openvino: for those who install it; in bfloat16 where the version has that precision
ONNXRUNTIME, OPENVINO, TENSORFLOW = "onnxruntime", "openvino", "tensorflow"
ENGINES = ("auto", ONNXRUNTIME, OPENVINO, TENSORFLOW)
