"""How well the species that are named agree with those that pictures show, where that may be any number of them.

Spark counts. Precision, recall and F1 of 0/0 are 0, and macro averages are over the species that occur, as shown or as
named ones: the rules of `evaluation`. The average precision, which needs no threshold, is that of scikit-learn: the
mean of the precisions at the pictures that show a species, by falling probability, where equal probabilities count as
one; it is not a number of a species that no picture shows, and the mean leaves that out.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import schema
from seedlings_spark.errors import CorpusError, SeedlingsError
from seedlings_spark.reports.evaluation import wilson


@dataclass(frozen=True)
class LabelScores:
    """One species. Scores lie between 0 and 1.

    Attributes:
        species: Its name.
        threshold: The probability from which it is named.
        support: How many images show it.
        predicted: Of how many images it is named.
        true_positives: How many of those show it.
        precision: true_positives / predicted; 0 if it was never named.
        recall: true_positives / support; 0 if no image shows it.
        f1: 2 * true_positives / (support + predicted); 0 if both are.
        average_precision: Without the threshold; not a number if no image shows it.
    """

    species: str
    threshold: float
    support: int
    predicted: int
    true_positives: int
    precision: float
    recall: float
    f1: float
    average_precision: float


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """The numbers of one model on one set of images, each of which shows any number of species.

    Attributes:
        num_images: Their number.
        num_without: How many of them show none of the species.
        exact_match: The share of images of which all species are named, and no others.
        hamming_loss: The share of wrong answers of all, one for each image and species.
        per_species: One for each class, in the order of the network's outputs.
    """

    num_images: int
    num_without: int
    exact_match: float
    hamming_loss: float
    per_species: tuple[LabelScores, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The species."""
        return tuple(each.species for each in self.per_species)

    @property
    def _occurring(self) -> list[LabelScores]:
        return [each for each in self.per_species if each.support or each.predicted]

    @property
    def micro_f1(self) -> float:
        """F1 of the pooled counts."""
        hits = sum(each.true_positives for each in self.per_species)
        return _ratio(2 * hits, sum(each.support + each.predicted for each in self.per_species))

    @property
    def macro_f1(self) -> float:
        """Mean over the species that occur."""
        return _mean([each.f1 for each in self._occurring])

    @property
    def macro_precision(self) -> float:
        """As `macro_f1`."""
        return _mean([each.precision for each in self._occurring])

    @property
    def macro_recall(self) -> float:
        """As `macro_f1`."""
        return _mean([each.recall for each in self._occurring])

    @property
    def mean_average_precision(self) -> float:
        """Mean over the species that some image shows."""
        return _mean([each.average_precision for each in self.per_species if each.support])

    @property
    def exact_match_interval(self) -> tuple[float, float]:
        """Its 95 % confidence interval (Wilson 1927); not numbers without images."""
        return wilson(round(self.exact_match * self.num_images) if self.num_images else 0, self.num_images)

    @property
    def in_words(self) -> dict[str, float]:
        """The averages, by their names for a person."""
        return {
            "micro F1": self.micro_f1,
            "macro F1": self.macro_f1,
            "mean average precision": self.mean_average_precision,
            "macro precision": self.macro_precision,
            "macro recall": self.macro_recall,
            "Hamming loss": self.hamming_loss,
        }

    def to_dict(self) -> dict[str, object]:
        """The same as lists, dicts, strings and finite numbers, which JSON can hold; null where undefined."""
        names = ("exact_match", "hamming_loss", "micro_f1", "macro_f1", "macro_precision", "macro_recall")
        return {
            "kind": "multilabel",
            "num_images": self.num_images,
            "num_without_species": self.num_without,
            **{name: _finite(getattr(self, name)) for name in (*names, "mean_average_precision")},
            "exact_match_interval": [_finite(each) for each in self.exact_match_interval],
            "classes": list(self.classes),
            "per_species": [
                {name: _finite(value) for name, value in asdict(each).items()} for each in self.per_species
            ],
        }


def evaluate(table: DataFrame, classes: Sequence[str], thresholds: Sequence[float]) -> MultiLabelEvaluation:
    """Count, on the cluster, what is named and what is there.

    Args:
        table: With the columns `species`, `predicted_species` and `probabilities` of `schema.EVALUATED_LISTS`; it is
            read twice.
        classes: The species, in the order of the probabilities.
        thresholds: From which probability each was named.

    Raises:
        CorpusError: A picture shows a species that is none of the classes.
        SeedlingsError: A probability is not a number.
    """
    num_images, num_exact, num_without = _of_images(table, classes)
    found = _of_species(table, classes)
    scores = []
    for place, (name, threshold) in enumerate(zip(classes, thresholds, strict=True)):
        support, predicted, hits, average = found.get(place, (0, 0, 0, math.nan))
        precision, recall = _ratio(hits, predicted), _ratio(hits, support)
        f1 = _ratio(2 * hits, support + predicted)
        scores.append(LabelScores(name, threshold, support, predicted, hits, precision, recall, f1, average))
    wrong = sum(each.support + each.predicted - 2 * each.true_positives for each in scores)
    return MultiLabelEvaluation(
        num_images,
        num_without,
        _ratio(num_exact, num_images, math.nan),
        _ratio(wrong, num_images * len(classes), math.nan),
        tuple(scores),
    )


def _of_images(table: DataFrame, classes: Sequence[str]) -> tuple[int, int, int]:
    """How many images there are, of how many exactly their species are named, and how many show none.

    Raises:
        CorpusError: As for `evaluate`.
        SeedlingsError: As for `evaluate`.
    """
    strange = F.size(F.array_except(schema.SPECIES, F.array(*map(F.lit, classes)))) > 0
    no_number = F.exists(schema.PROBABILITIES, lambda value: value.isNull() | F.isnan(value))
    (counted,) = table.agg(
        F.count("*"),
        F.count_if(F.array_sort(schema.SPECIES) == F.array_sort(schema.PREDICTED_SPECIES)),
        F.count_if(F.size(schema.SPECIES) == 0),
        F.count_if(strange),
        F.count_if(no_number),
    ).collect()
    num_images, num_exact, num_without, num_strange, num_no_numbers = map(int, counted)
    if num_strange:
        raise CorpusError(
            f"{num_strange:,} of {num_images:,} images that show a species which the model does not know",
            f"species that it knows: {', '.join(classes)}",
            "Evaluate on a corpus of the species that the model was trained on, or train a model on this one",
        )
    if num_no_numbers:
        raise SeedlingsError(
            f"{num_no_numbers:,} of {num_images:,} images with a probability that is not a number",
            "numbers",
            "Train the model anew: its weights are not finite",
        )
    return num_images, num_exact, num_without


def _of_species(table: DataFrame, classes: Sequence[str]) -> dict[int, tuple[int, int, int, float]]:
    """Place of a species -> how many images show it, of how many it is named, of how many rightly; its AP."""
    names = F.array(*map(F.lit, classes))

    def in_list(column: str) -> Column:
        return F.transform(names, lambda name: F.array_contains(column, name).cast("int"))

    shown, named = in_list(schema.SPECIES).alias("shown"), in_list(schema.PREDICTED_SPECIES).alias("named")
    each = F.posexplode(F.arrays_zip(schema.PROBABILITIES, shown, named))
    rows = table.select(each.alias("place", "of")).select("place", "of.*")
    # Up to a row and all with the same probability.
    so_far = Window.partitionBy("place").orderBy(F.desc(schema.PROBABILITIES))
    so_far = so_far.rangeBetween(Window.unboundedPreceding, Window.currentRow)
    precision = F.sum("shown").over(so_far) / F.count(F.lit(1)).over(so_far)
    counted = (
        rows.withColumn("precision", precision)
        .groupBy("place")
        .agg(
            F.sum("shown"),
            F.sum("named"),
            F.sum(F.col("shown") * F.col("named")),
            F.avg(F.when(F.col("shown") == 1, F.col("precision"))),
        )
        .collect()
    )
    return {
        int(place): (int(support), int(predicted), int(hits), math.nan if average is None else float(average))
        for place, support, predicted, hits, average in counted
    }


def _ratio(part: float, whole: int, undefined: float = 0.0) -> float:
    return part / whole if whole else undefined


def _mean(values: Sequence[float]) -> float:
    return _ratio(math.fsum(values), len(values), math.nan)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
