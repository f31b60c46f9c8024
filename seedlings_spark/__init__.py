"""Distributed training and bulk scoring of Keras image classifiers on Spark, through Elephas.

What a job does is one call, with the options that its command line has:

    import seedlings_spark as ss

    corpus = ss.prepare(spark, ss.PrepareOptions(images="photos", corpus="corpus"))
    trained = ss.train(spark, ss.TrainOptions(corpus="corpus", store="store", epochs=10))
    numbers = ss.evaluate(spark, ss.EvaluateOptions(corpus="corpus", store="store", report="report"))
    run = ss.score(spark, ss.ScoreOptions(images="new-photos", store="store", output="scores"))

`SeedlingsEstimator` is a stage for pipelines of one's own, `ModelStore` the versions, `load_corpus` opens a corpus.
Spark and TensorFlow are imported by what needs them, when it is asked for.

The map, room by room, in the order of imports: a module may import those of its own and of earlier rooms only.
`tests/unit/test_architecture.py` holds it.

    errors          what can go wrong for a user, one class each
    choices         what can be chosen, and the limits of a file
    kinds           what labels are: one species, any number of them, a number
    display         names that others chose, as a terminal, a log or a page may show them
    schema          column names and layouts of our tables
    fingerprint     content hash, split of a hash, shard of a hash, corpus fingerprint
    reproducibility seeds derived by name; what a result depends on
    progress        what a person sees of a job at work

    files           paths on any Hadoop file system; a file appears whole or not at all
      connectors    which package a file system is missing
      stores        objects of S3 by pyarrow, in executors too
      paths         names of paths, and what a listing says of them
      local         paths on this machine's file system, by Python
      hadoop        paths on any other, by the JVM of the running Spark application

    config          options of every job: TOML and flags become frozen, validated objects
      suggestions   what options and their values are called elsewhere, for mistyped ones
      options       an option: its declaration as a field, and the checks of its value
      jobs          the options of each job
      __main__      prints the content of `conf/seedlings.toml`

    lock            one writer for one folder

    cluster         the machines
      environment   the packages of this installation as an archive
      connect       sessions of Spark Connect, whose driver is another process
      session       builds the SparkSession; slots, addresses, environments
      runtime       what TensorFlow may use in this process: threads, GPU, determinism, precision
      doctor        what is in the way of the jobs

    images          bytes -> uint8 pixels, or ImageError: the only door of Pillow and the decoders
      png           what the bytes of a PNG say before any decoder sees them
      jpeg          the same of a JPEG
      gif           the same of a GIF
      tiff          the same of a TIFF
      bmp           BMP pictures of palettes, by ourselves
      libtiff       what libtiff has to say about a file
      perceptual    bits that are nearly the same of pictures that look nearly the same
      corruptions   what pictures meet outside: noise, blur, bad light

    corpus          image files -> corpus table, rejects, manifest
      systems       file systems that are asked, and may fall silent
      tables        tables of others and of ours, as Spark reads them: whole, or not at all
      archives      pictures in zip and tar archives, which are not unpacked
      contents      tables that hold the files' bytes, or images that Spark has read
      listings      which files there are below a folder
      remote        bytes that no Python process of an executor can open: Spark reads them
      decoding      of each listed file its pixels, or the reason why there are none
      references    which files a table of paths names, and may name
      layout        where the species stand: folders' names, or a table's column
      splits        which image goes into which split; samples
      manifest      a corpus on disk, and the numbers that its tables are compared with
      fixes         labels that a person has corrected
      near_duplicates   pictures that are nearly the same
      comparison    what tells two corpora apart
      preparation   from image files to a corpus that appears whole
      erasure       pictures that a corpus is to forget
      synthetic     draws a small corpus of species-like plants, from a seed

    problems        what kind of problem loss, label and outputs make; outputs -> probabilities
    training        the protocol between master and workers, in prose
      weights       arithmetic on lists of arrays, held as one flat vector
      tree          who holds which shards, and the order in which vectors are averaged
      dealing       which shards a slow worker loses to faster ones
      rules         how an asynchronous worker's work enters the model
      wire          messages over TLS
      server        the driver's side of the connections
      client        a worker's side
      peers         the workers' connections with each other: averages among themselves
      shard         a worker's rows: in memory, or spooled to disk
      curriculum    which rows an epoch goes through, where easy ones come first
      network       a network as it travels: what a `.keras` file holds
      optimizer     an optimizer as it travels, and what it counts
      owned         an optimizer's step on a slice of the weights
      capacity      what bounds the speed of training
      progress      what a person sees while it trains
      record        what is worth recording of a run
      epochs        steps and rounds of an epoch, and who hears of its end
      messages      what workers and master say to each other
      master        the one model and optimizer of a run
      mixing        parts of other rows, and of their labels, in each row of a batch
      worker        what one Spark task does
      checkpoint    a run between two epochs, on disk
      resume        a run's checkpoints: taken up, and left behind
      launcher      who starts the workers; threads of this process
      stage         the Spark stage of a run's workers
      coordination  who holds which rank, what has failed, sums over results
      updates       the model that asynchronous updates enter, whose turn it is, snapshots
      synchronous   the driver's side of synchronous training
      asynchronous  the driver's side of asynchronous training
      engine        a run from a compiled network to its record

    models          networks, alone
      backbones     Keras' applications and EfficientNet-Lite, over raw pixels
      pretrained    weights of others into a network, from files
      networks      networks by name or from a file; folding a mean and a std into one
      engines       what computes a forward pass: ONNX Runtime's door, and TensorFlow
      prediction    the forward pass in a Spark task
      export        a Keras network as an ONNX file, compared with Keras
      saliency      where in a picture a network finds what it predicts
      attacks       pictures that are changed by little so that a network errs
      decisions     sets that hold the true species, and when a picture is called unknown
      stages        which stages a saved pipeline may have, and which params each of them
      store         model versions: publish, list, resolve, promote, roll back

    exports         a version in the form that another place wants, verified against Keras
      source        a version on its way out, and what it is compared on
      card          the model card, the labels and the resizing rule beside each export
      onnx          for ONNX Runtime in any language
      savedmodel    for TensorFlow Serving and what else takes SavedModels
      litert        for phones and small boards
      openvino      for Intel's processors
      coreml        for iPhones
      web           a page that computes in the visitor's browser
      triton        a model repository of NVIDIA Triton
      mlflow        a model of MLflow

    serving         model versions behind HTTP on one machine, without Spark
      versions      which versions, loaded
      requests      the JSON of TensorFlow Serving
      batches       images that wait are computed together
      server        routes, limits, page, health, metrics

    estimator       Spark ML's face of training
      stock         Elephas' own classes, which ours extend: Elephas' only door
      columns       what the columns of a table to train on must hold
      features      Spark ML stages: class indices, or 0 and 1 for each class; mean and std of pixels
      params        the params of our stages, and their values as JSON
      rows          which columns are trained on, and which worker gets which rows
      model         SeedlingsModel: a trained network as a transformer
      estimator     SeedlingsEstimator
      elephas       drop-in for Elephas' own estimator and transformer, with its conventions
    elephas         the public path of the drop-in
    features        the path under which saved pipelines name the stages of `estimator.features`

    reports         what a model is worth
      evaluation    predictions -> numbers
      multilabel    the same where pictures show any number of species
      numbers       the same where they have a number each
      certainty     probabilities -> how sure a model is, and how often it is right then
      paired        two versions on the same pictures
      promised      whether sets hold the true species as often as promised
      robustness    accuracy on pictures that are corrupted on purpose
      projector     pictures as points, on a map and for TensorBoard's projector
      gallery       the pictures that are wrong, or right by little
      slices        accuracy on parts of a split, and which are the worst
      findings      what an evaluation found beside its confusion matrix
      labels        labels that are probably wrong
      exploration   a corpus, looked at
      feedback      labels that come late, beside what was predicted
      watching      how far the runs of an output are from the training corpus, over time
      fitting       learning curves -> words on overfitting and underfitting
      drift         how a run's images and predictions differ from the training corpus
      plots         numbers -> PNG: matplotlib's only door
      html          all of it -> one HTML page: Jinja's only door
      page          numbers -> JSON, HTML, a table for the terminal
      search        what a search for options has found, likewise

    scoring         a model version over files: runs that appear whole
      sources       what there is to score: folder, glob, list, table
      runs          the runs of one output
      ledger        which files earlier runs have seen
      progress      what a person sees while it scores
      review        the least confident images, for a person to look at
      tasks         what a scoring task does: from bytes to probabilities in one process
      profile       images and predictions as a whole, to compare with the training corpus
      sql           a model version as functions of Spark SQL
      erasure       pictures that runs are to forget
      shadow        a second version over the same pictures: where it says something else
      run           one run, from its listing to its publication
      printing      what a person and a scheduler are told of a run
      streaming     what arrives, scored as it arrives, by the version that is current by then

    workflow        what the jobs do
      runs          the folder of a training run: what ran, how far it is, how it ended
      events        the metrics and pictures of a run as TensorBoard shows them
      tracking      a run as MLflow shows it
      jobs          one call for each job
      pipeline      the pipeline that a corpus is fitted with
      calibration   a temperature that makes confidence what it says
      transfer      a last layer on features that are computed once
      curriculum    how difficult each training image is for a network that has seen little
      folds         every image predicted by a network that has not seen it
      predicting    a version's predictions of a corpus, and their numbers
      watching      from the runs of an output to a page of their drift
      exploring     from a corpus to a page that shows it, and labels to correct
      late_labels   from late labels to numbers, and the pictures that were wrong
      promoting     whether a version may take the place of the current one
      projecting    features of a version's pictures, for such a map
      publication   from a fitted pipeline, or somebody's own network, to a published version
      quickstart    where the quickstart puts what it makes
      space         what a search chooses from
      reproduction  a run trained again, bits compared
      featurizing   images as vectors of a layer
      neighbours    the pictures whose vectors are most like that of one picture
      data_curve    growing parts of the training images, to see whether more would help
      search        many small trainings side by side, and what they find
      clean         what of an output, a run or a store is no longer needed
      forgetting    pictures out of scores and a corpus, and the versions that were trained on them
      exporting     from a store to an export: which version, compared on which images
      serving       from a store to a server that answers

    benchmark       measures this machine or cluster, beside what else there is
      train         how fast training is
      score         how fast scoring is
      inference     how fast each engine computes a network, one image at a time and in batches
      scale         how fast training would be with more workers
      machines      a narrow network of machines, all on this one
      narrow        how long a step takes there, beside the model

    cli             arguments, session, logging and exit code of a job
      preflight     what can be known of a job before Spark starts
      locales       a locale of UTF-8 for the JVM
      invocation    what a command line asks for: Spark's options, a job, its arguments
      installation  where jobs, settings, Python, Spark and Java are
      classes       an archive of Spark's classes, by which JVMs of this machine start sooner
      relay         spark-submit as a process: its stderr, signals, exit code
      submission    what spark-submit is given
      launch        from a command line to spark-submit
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seedlings_spark.config import (
        EvaluateOptions,
        FeaturizeOptions,
        PrepareOptions,
        ScoreOptions,
        SimilarOptions,
        TrainOptions,
        TuneOptions,
    )
    from seedlings_spark.corpus import Corpus
    from seedlings_spark.corpus import load as load_corpus
    from seedlings_spark.estimator import SeedlingsEstimator, SeedlingsModel
    from seedlings_spark.models.store import ModelStore, ModelVersion
    from seedlings_spark.workflow import Trained, evaluate, featurize, prepare, score, similar, train, tune

__all__ = [
    "Corpus",
    "EvaluateOptions",
    "FeaturizeOptions",
    "ModelStore",
    "ModelVersion",
    "PrepareOptions",
    "ScoreOptions",
    "SeedlingsEstimator",
    "SeedlingsModel",
    "SimilarOptions",
    "TrainOptions",
    "Trained",
    "TuneOptions",
    "evaluate",
    "featurize",
    "load_corpus",
    "prepare",
    "score",
    "similar",
    "train",
    "tune",
]

# Where they are, and by which name.
_PLACES = {
    **dict.fromkeys(
        [
            "EvaluateOptions",
            "FeaturizeOptions",
            "PrepareOptions",
            "ScoreOptions",
            "SimilarOptions",
            "TrainOptions",
            "TuneOptions",
        ],
        "config",
    ),
    **dict.fromkeys(
        ["Trained", "evaluate", "featurize", "prepare", "score", "similar", "train", "tune"], "workflow"
    ),
    **dict.fromkeys(["SeedlingsEstimator", "SeedlingsModel"], "estimator"),
    **dict.fromkeys(["ModelStore", "ModelVersion"], "models.store"),
    **dict.fromkeys(["Corpus", "load_corpus"], "corpus"),
}
_NAMES = {"load_corpus": "load"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), _NAMES.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
