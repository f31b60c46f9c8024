"""The search for options of `train`: many small trainings side by side, on the slots that there are.

Each trial is a run of its own, with its own workers; as many run at once as the slots allow. Optuna proposes (TPE) and
ends those early that fall behind (successive halving, by epochs). What it knows stands in the folder of the search, so
that a search that was killed goes on: trials that had ended count, those that were at work go on from their
checkpoints. A proposal follows from the seed, its number and the trials that had ended before it: one trial at a time
gives the same search again, killed or not.

RUN/trials.jsonl         one line a trial
RUN/trials/NNNN/         metrics and checkpoints of one
RUN/curve/NNN/           with --data-curve: metrics, checkpoints and result of a training on so many percent
RUN/report/              what was found: see `reports.search`
"""

import json
import logging
import queue
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, cast

from pyspark import InheritableThread
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import config, corpus, display, errors, files, schema
from seedlings_spark.cluster import session
from seedlings_spark.config import EvaluateOptions, TrainOptions, TuneOptions
from seedlings_spark.corpus import Corpus
from seedlings_spark.corpus.splits import is_sampled
from seedlings_spark.errors import ClusterError, CorpusError, NetworkError, OptionError, TrainingError
from seedlings_spark.estimator import SeedlingsEstimator, SeedlingsModel
from seedlings_spark.lock import Lock
from seedlings_spark.reports import search as report
from seedlings_spark.reports.evaluation import Evaluation
from seedlings_spark.reproducibility import seed_for
from seedlings_spark.workflow import data_curve, jobs, pipeline, runs, transfer
from seedlings_spark.workflow.space import Space
from seedlings_spark.workflow.space import read as read_space

_log = logging.getLogger(__name__)
TRIALS = "trials.jsonl"
RUNNING, DONE, PRUNED, FAILED = "running", "done", "pruned", "failed"
_ACCURACY, _LOSS = "val_accuracy", "val_loss"
# Of the search, the part that may fail before it is given up.
_MOST_FAILED = 1 / 3
# What a search may be taken up with anew: how much is searched, how, and what is done with what was found.
SEARCHES, TEST_IMAGES = "searches", "test images"  # folders: of a model's searches, of the best one's report
_FREE = ("trials", "parallel", "finalists", "data_curve", "final", "wait_executors")
# What the options of a trial are the reason of.
_OF_A_TRIAL = (OptionError, NetworkError, CorpusError, TrainingError, ValueError, ArithmeticError)
# The first trials are drawn, not proposed.
_DRAWN = 10


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Args:
        number: From 0.
        params: As Optuna chose them; see `Space.values`.
        share: Of the training images that it learns from.
        state: `RUNNING`, `DONE`, `PRUNED` or `FAILED`.
        finalist_of: Number of the trial whose options are trained on all images here; None for one of the search.
        accuracy: On the validation images, of the epoch that `train` would keep; of a pruned one the last epoch's.
        epoch: That epoch, from 1.
        history: Loss and accuracy of each epoch.
        seconds: That it took.
        error: Why it failed, in one line.
        attributes: What Optuna's pruner knows of it.
    """

    number: int
    params: Mapping[str, Any]
    share: float = 1.0
    state: str = RUNNING
    finalist_of: int | None = None
    accuracy: float | None = None
    epoch: int = 0
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Args:
        trials: All of them, in the order of their numbers.
        space: What was searched.
        options: Those of the search.
        best: The best one: of the finalists, if there were some.
        importance: Option -> its share of what made the difference, by PED-ANOVA; empty where too few trials ended.
        version: That was published with --final.
        test_accuracy: Its accuracy on the test images.
        curve: With --data-curve, how accuracy grows with the training images, the fewest first.
    """

    trials: Sequence[Trial]
    space: Space
    options: TuneOptions
    best: Trial
    importance: Mapping[str, float]
    version: str = ""
    test_accuracy: float | None = None
    curve: Sequence[report.CurvePoint] = ()

    @property
    def train_options(self) -> TrainOptions:
        """Those that train the best one."""
        return _train_options(self.options, self.space, self.space.values(self.best.params))

    def numbers(self) -> report.SearchNumbers:
        """What a report shows."""
        shown = [
            report.TrialNumbers(
                values=self.space.values(trial.params),
                is_finalist=trial.finalist_of is not None,
                **config.chosen(trial, "number", "state", "accuracy", "epoch", "share", "seconds", "error"),
            )
            for trial in self.trials
        ]
        about = {"corpus": self.options.corpus, "search": self.options.run, "trials": len(self.trials)}
        command = " ".join([display.command(), "train", *_flags(self.train_options)])
        return report.SearchNumbers(
            shown, self.best.number, self.best.history, self.importance, command, about, self.curve
        )

    def told(self) -> str:
        """The best trials and what they show, for a person to read."""
        if self.test_accuracy is None:
            return report.table(self.numbers())
        final = f"{self.options.name} {self.version} is trained on it: test accuracy {self.test_accuracy:.4f}"
        return f"{report.table(self.numbers())}\n\n{final}"


def _flags(options: TrainOptions) -> list[str]:
    """The options of a command line; those that are as they would be without are left out."""
    given = []
    for each in fields(options):
        value = getattr(options, each.name)
        if value == each.default:
            continue
        flag = config.flag_of(each.name)
        if isinstance(value, bool):
            given.append(flag if value else f"--no-{flag[2:]}")
        else:
            given += [flag, *(str(item) for item in (value if isinstance(value, tuple) else (value,)))]
    return [shlex.quote(word) for word in given]


def tune(spark: SparkSession, options: TuneOptions) -> Found:
    """Search for the options of `train` that name most validation images rightly.

    The test images are not looked at. Called again with the folder of a search that was cut short, it goes on; with
    more trials than it had, it adds them.

    Args:
        spark: The session; as many trials run at once as it has slots for.
        options: Those of the job `tune`.

    Raises:
        ClusterError: Optuna is not installed, or there are too few slots for one trial.
        CorpusError: The corpus has no validation images, or lacks images of a species.
        OptionError: A search space with an option or a value that cannot be; other options than those of the search
            that is to go on.
        TrainingError: More than a third of the trials failed.
    """
    _require_optuna()
    options = config.qualified(options)
    space = read_space(options.space)
    base = _base(options, space)
    session.require_slots(spark, base.num_workers, options.wait_executors, base.min_workers)
    prepared = corpus.load(options.corpus).require_one_species("tune")
    if not prepared.num_images(schema.VALIDATION):
        raise CorpusError(
            f"no validation images in {prepared.path}",
            "some, which the trials are compared on",
            "Prepare the corpus with a share of them (--split-shares)",
        )
    application = str(spark.sparkContext.applicationId)
    run = options.run or files.join(options.store, options.name, SEARCHES, application)
    told = {key: value for key, value in config.plain(options).items() if key not in _FREE}
    told["space"] = {"train": config.plain(base), "space": _as_text(space)}
    about = {"options": told, "corpus": {"path": prepared.path, "fingerprint": prepared.fingerprint}}
    with Lock(run, application), runs.recorded(run):
        runs.begin(run, about, application)
        search = _Search(spark, replace(options, run=run), space, prepared)
        found = search.run()
        report.write(files.join(run, "report"), found.numbers())
        if options.data_curve:
            found = replace(found, curve=search.curve(found.train_options))
            report.write(files.join(run, "report"), found.numbers())
    return found if not options.final else _finished(spark, found)


def _finished(spark: SparkSession, found: Found) -> Found:
    """Train the best one as `train` does, and evaluate it on the test images."""
    run = found.options.run
    folder = files.join(run, "final", f"{found.best.number:04d}")
    trained = jobs.train(spark, replace(found.train_options, run=folder))
    places = config.chosen(found.options, "corpus", "store", "name")
    tested = EvaluateOptions(
        **places, model_version=trained.version, report=files.join(run, "report", TEST_IMAGES)
    )
    numbers = cast(Evaluation, jobs.evaluate(spark, tested))
    return replace(found, version=trained.version, test_accuracy=numbers.accuracy)


def _as_text(space: Space) -> dict[str, str]:
    return {name: str(dimension) for name, dimension in space.dimensions.items()}


def _require_optuna() -> None:
    try:
        import optuna
    except ImportError:
        raise ClusterError(
            "no package optuna in the driver's Python",
            "optuna, which proposes the trials",
            "Install it with: pip install 'seedlings-spark[tune]'",
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _train_options(options: TuneOptions, space: Space, values: Mapping[str, Any]) -> TrainOptions:
    places = {"corpus": options.corpus, "store": options.store, "name": options.name}
    return TrainOptions(**{**places, **space.fixed, **values})


def _base(options: TuneOptions, space: Space) -> TrainOptions:
    """What all trials have in common, with the most workers and epochs that one of them can have."""
    largest = space.largest("num_workers", "min_workers", "epochs")
    try:
        return _train_options(options, space, largest)
    except OptionError:
        # What is common may go with what is searched, and not with its defaults.
        return _train_options(options, space, {**space.first(), **largest})


class _Watch:
    """Tells Optuna of each epoch of a trial, and ends one that falls behind, or whose search is over.

    Args:
        search: The search.
        trial: Optuna's; None for a finalist, of which it is not told.
        epochs: Of the whole trial.
    """

    def __init__(self, search: "_Search", trial: Any, *, epochs: int) -> None:
        self._search, self._trial, self._epochs = search, trial, epochs
        self.is_pruned = False

    def ends(self, epoch: int, logs: Mapping[str, float]) -> bool:
        """Whether this epoch, from 0, was the last one."""
        if self._trial is not None:
            self._trial.report(float(logs[_ACCURACY]), epoch + 1)
            self.is_pruned = epoch + 1 < self._epochs and self._trial.should_prune()
        return self.is_pruned or self._search.is_over


class _Search:
    """A search at work.

    Args:
        spark: The session.
        options: Those of the job, with the folder of the search.
        space: What is searched.
        prepared: The corpus.
    """

    def __init__(self, spark: SparkSession, options: TuneOptions, space: Space, prepared: Corpus) -> None:
        import optuna

        self._spark, self._options, self._space, self._corpus = spark, options, space, prepared
        self._distributions = space.distributions()
        self._file = files.join(options.run, TRIALS)
        self._changing, self._preparing = threading.RLock(), threading.Lock()
        self._prepared: dict[tuple[str, str, int], PipelineModel] = {}
        self._trials = self._taken_up()
        self._again = [trial for trial in self._trials.values() if trial.state == RUNNING]
        epochs = _base(options, space).epochs
        self._study = optuna.create_study(
            direction="maximize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // 9)),
        )
        for trial in self._trials.values():
            self._tell_of(trial)
        self.is_over = False

    def run(self) -> Found:
        """Train what is left to train; what was found in the end."""
        options = self._options
        self._side_by_side(self._next, self._train)
        ended = [
            trial for trial in self._trials.values() if trial.state == DONE and trial.finalist_of is None
        ]
        ended.sort(key=lambda trial: (-(trial.accuracy or 0), trial.number))
        if not ended:
            raise TrainingError(
                f"none of {len(self._trials)} trials that ended well",
                "at least one",
                f"See {self._file}, which has the reason of each",
            )
        if options.sample < 1:
            known = {trial.finalist_of for trial in self._trials.values() if trial.state != RUNNING}
            waiting = [trial for trial in ended[: options.finalists] if trial.number not in known]
            waiting = [trial for trial in waiting if all(a.finalist_of != trial.number for a in self._again)]
            self._side_by_side(lambda: self._next_finalist(waiting), self._train)
        finalists = [each for each in self._trials.values() if each.finalist_of is not None]
        finished = [each for each in finalists if each.state == DONE] or ended
        best = min(finished, key=lambda trial: (-(trial.accuracy or 0), trial.number))
        trials = sorted(self._trials.values(), key=lambda trial: trial.number)
        return Found(trials, self._space, options, best, self._importance(len(ended)))

    def curve(self, options: TrainOptions) -> list[report.CurvePoint]:
        """Train on growing parts of the training images; those that an earlier attempt has trained on are kept.

        Args:
            options: Those of the best trial.
        """
        folder = files.join(self._options.run, data_curve.FOLDER)
        paths = {share: files.join(folder, f"{round(100 * share):03d}") for share in data_curve.SHARES}
        waiting = [share for share in paths if not files.exists(files.join(paths[share], data_curve.POINT))]

        def take() -> tuple[float] | None:
            with self._changing:
                return (waiting.pop(),) if waiting else None

        def measure(share: float) -> None:
            given = data_curve.options_of(options, share, self._options.seed)
            images = pipeline.training_images(self._spark, self._corpus)
            images = data_curve.sampled(images, share, self._options.seed)
            history, epoch = self._history(
                given,
                images,
                paths[share],
                lambda *_: self.is_over,
                key=f"curve {share}",
                # A part has as many steps as the whole, in so many more epochs.
                plateau_epochs=round(pipeline.PLATEAU_EPOCHS / share),
            )
            if self.is_over:
                return
            point = report.CurvePoint(
                share,
                images.where(~F.col(pipeline.HELD_OUT)).count(),
                history[_ACCURACY][epoch],
                self._corpus.num_images(schema.VALIDATION),
            )
            files.write_text(files.join(paths[share], data_curve.POINT), json.dumps(asdict(point)) + "\n")
            files.delete(files.join(paths[share], runs.CHECKPOINTS))
            _log.info("%d training images: validation accuracy %.4f", point.images, point.accuracy)

        self._side_by_side(take, measure)
        texts = (files.read_text(files.join(path, data_curve.POINT)) for path in paths.values())
        return [report.CurvePoint(**json.loads(text)) for text in texts]

    def _side_by_side(self, take: Any, train: Any) -> None:
        """Do `train` with what `take` gives, until it gives None, as many at once as the slots allow."""
        workers = _base(self._options, self._space).num_workers
        parallel = self._options.parallel or max(1, session.num_slots(self._spark) // workers)
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                while not self.is_over and (started := take()) is not None:
                    train(*started)
                ended.put(None)
            except BaseException as error:
                ended.put(error)

        threads = [InheritableThread(work, session=self._spark) for _ in range(parallel)]
        try:
            for thread in threads:
                thread.daemon = True
                thread.start()
            for _ in threads:
                if (error := ended.get()) is not None:
                    raise error
        except BaseException:
            self.is_over = True  # for the others: each ends after its epoch
            raise

    def _next(self) -> tuple[Trial, Any] | None:
        """The next trial of the search, written down, with Optuna's."""
        import optuna

        with self._changing:
            again = next((each for each in self._again if each.finalist_of is None), None)
            number = sum(trial.finalist_of is None for trial in self._trials.values())
            if again is not None:
                self._again.remove(again)
                self._study.enqueue_trial(dict(again.params))
            elif number >= self._options.trials:
                return None
            seed = seed_for(self._options.seed, "tune", number) % 2**32
            self._study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=_DRAWN, constant_liar=True, seed=seed
            )
            asked = self._study.ask(self._distributions)
            trial = again or Trial(self._new_number(), dict(asked.params), self._options.sample)
            self._write(trial)
            return trial, asked

    def _next_finalist(self, waiting: list[Trial]) -> tuple[Trial, Any] | None:
        with self._changing:
            if self._again:
                return self._again.pop(0), None
            if not waiting:
                return None
            found = waiting.pop(0)
            trial = Trial(self._new_number(), found.params, finalist_of=found.number)
            self._write(trial)
            return trial, None

    def _new_number(self) -> int:
        return max(self._trials, default=-1) + 1

    def _train(self, trial: Trial, asked: Any) -> None:
        """Train one, and write down what came of it."""
        started = time.monotonic()
        try:
            ended = self._fitted(trial, asked)
        except _OF_A_TRIAL as error:  # the next one may do well
            ended = replace(trial, state=FAILED, error=display.one_line(errors.for_user(error)))
        if self.is_over:
            return
        ended = replace(ended, seconds=time.monotonic() - started)
        with self._changing:
            if asked is not None:
                self._end_for_optuna(asked, ended)
                ended = replace(ended, attributes=dict(self._study.trials[asked.number].system_attrs))
            self._write(ended)
        files.delete(files.join(self._folder(trial), runs.CHECKPOINTS))
        _log.info("%s", self._line(ended))
        self._refuse_failures()

    def _fitted(self, trial: Trial, asked: Any) -> Trial:
        options = _train_options(self._options, self._space, self._space.values(trial.params))
        watch = _Watch(self, asked, epochs=options.epochs)
        images = self._sampled(pipeline.training_images(self._spark, self._corpus), trial.share)
        kept, epoch = self._history(
            options, images, self._folder(trial), watch.ends, key=f"sample {trial.share}"
        )
        epoch = len(kept[_LOSS]) - 1 if watch.is_pruned else epoch
        return replace(
            trial,
            state=PRUNED if watch.is_pruned else DONE,
            accuracy=kept[_ACCURACY][epoch],
            epoch=epoch + 1,
            history=pipeline.finite(kept),
        )

    def _history(
        self,
        options: TrainOptions,
        images: DataFrame,
        run: str,
        ends: Any,
        *,
        key: str,
        plateau_epochs: int = pipeline.PLATEAU_EPOCHS,
    ) -> tuple[dict[str, list[float]], int]:
        """Train, and give loss and accuracy of each epoch, and the epoch, from 0, that `train` would keep.

        Args:
            options: Those of the training.
            images: As `pipeline.training_images` gives them, or a part of them.
            run: Folder of its metrics and checkpoints.
            ends: As for `pipeline.EpochEnds`.
            key: Tells images from other ones: what is computed of them before training is kept.
            plateau_epochs: As for `pipeline.plateau`.
        """
        estimator = jobs.estimator(self._spark, options, self._corpus, run, images)
        estimator.set_verbosity(0)
        # The weights themselves are not wanted, so that the last ones may stay.
        stopping = {"keep": "last", **config.chosen(options, "patience", "epochs", "schedule")}
        record = pipeline.RunRecord(files.join(run, runs.METRICS))
        deciding = pipeline.callbacks(self._corpus, **stopping, plateau_epochs=plateau_epochs)
        estimator.set_callbacks([record, *deciding, pipeline.EpochEnds(ends)])
        fitted = self._fit(options, estimator, images, key)
        names = ("loss", "accuracy", _LOSS, _ACCURACY)
        kept = {
            name: [float(value) for value in fitted.history[name]] for name in names if name in fitted.history
        }
        losses = kept[_LOSS]
        epoch = min(range(len(losses)), key=lambda at: (losses[at] != losses[at], losses[at]))
        return kept, len(losses) - 1 if options.keep == "last" else epoch

    def _fit(
        self, options: TrainOptions, estimator: SeedlingsEstimator, images: DataFrame, key: str
    ) -> SeedlingsModel:
        """Train on images, or a head alone on their features."""
        if transfer.is_for(options.network, options.fine_tune, options.augment):
            features = jobs.kept_features(options, self._corpus)
            with self._preparing:  # the first trial computes them for all
                transfer.features(self._spark, self._corpus, features)
            whole = transfer.fit(self._spark, estimator, self._corpus, features, images)
            return cast(SeedlingsModel, whole.stages[-1])
        scaler = pipeline.scaler(options.scaler, options.network)
        *first, _ = pipeline.pipeline(
            self._corpus, estimator, scaler=scaler, scaler_images=options.scaler_images
        ).getStages()
        with (
            self._preparing
        ):  # indices, mean and std are the same for all trials that learn from the same images
            known = (key, scaler, options.scaler_images)
            if known not in self._prepared:
                self._prepared[known] = Pipeline(stages=first).fit(images)
        return cast(SeedlingsModel, estimator.fit(self._prepared[known].transform(images)))

    def _folder(self, trial: Trial) -> str:
        return files.join(self._options.run, "trials", f"{trial.number:04d}")

    @staticmethod
    def _sampled(images: DataFrame, share: float) -> DataFrame:
        """All validation images, and a share of those to train on, chosen by their content."""
        return images if share >= 1 else images.where(F.col(pipeline.HELD_OUT) | is_sampled(share, start=17))

    def _refuse_failures(self) -> None:
        with self._changing:
            failed = [trial for trial in self._trials.values() if trial.state == FAILED]
        if len(failed) > _MOST_FAILED * self._options.trials:
            raise TrainingError(
                f"{len(failed)} of {self._options.trials} trials that failed, at last with: {failed[-1].error}",
                "at most a third of them",
                f"Mend what they name; {self._file} has the reason of each. Start again with another --run",
            )

    def _line(self, trial: Trial) -> str:
        values = ", ".join(f"{name} {value}" for name, value in self._space.values(trial.params).items())
        accuracy = "" if trial.accuracy is None else f", validation accuracy {trial.accuracy:.4f}"
        why = f": {trial.error}" if trial.error else ""
        return f"trial {trial.number} {trial.state}{accuracy} ({values or 'as given'}){why}"

    # What is written down, and what Optuna is told of it.

    def _taken_up(self) -> dict[int, Trial]:
        if not files.exists(self._file):
            return {}
        lines = files.read_text(self._file).splitlines()
        return {trial.number: trial for trial in (Trial(**json.loads(line)) for line in lines)}

    def _write(self, trial: Trial) -> None:
        self._trials[trial.number] = trial
        lines = (json.dumps(asdict(each), ensure_ascii=False) for each in self._trials.values())
        files.write_text(self._file, "\n".join(lines) + "\n")

    def _tell_of(self, trial: Trial) -> None:
        """A trial of an earlier attempt that has ended."""
        import optuna

        if trial.state == RUNNING or trial.finalist_of is not None:
            return
        state = {
            DONE: optuna.trial.TrialState.COMPLETE,
            PRUNED: optuna.trial.TrialState.PRUNED,
            FAILED: optuna.trial.TrialState.FAIL,
        }[trial.state]
        reported = dict(enumerate(trial.history.get(_ACCURACY, ()), 1))
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=trial.accuracy if trial.state != FAILED else None,
                params=dict(trial.params),
                distributions=self._distributions,
                intermediate_values=reported,
                system_attrs=dict(trial.attributes),
            )
        )

    def _end_for_optuna(self, asked: Any, trial: Trial) -> None:
        import optuna

        states = optuna.trial.TrialState
        if trial.state == FAILED:
            self._study.tell(asked, state=states.FAIL)
        elif trial.state == PRUNED:
            self._study.tell(asked, state=states.PRUNED)
        else:
            self._study.tell(asked, trial.accuracy)

    def _importance(self, num_ended: int) -> dict[str, float]:
        """Of each option that was searched; empty where too few trials tell."""
        import optuna

        if num_ended < _DRAWN or not self._distributions:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {name: float(value) for name, value in found.items()}
