"""How far predicted numbers are from the true ones.

Spark sums. Intervals are those of large samples: of the mean error and the MAE by the central limit theorem, of the
RMSE and R2 by the delta method, of the median absolute error by order statistics (Hollander, Wolfe and Chicken 2013,
"Nonparametric Statistical Methods"). R2 is that of scikit-learn, 1 less the ratio of the squared errors to the squared
distances from the mean of these very pictures: 0 is what their mean would have, and less is possible.
"""

import math
from dataclasses import asdict, dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import schema
from seedlings_spark.corpus.splits import is_sampled
from seedlings_spark.errors import SeedlingsError

# Of the plot: pictures that are drawn, chosen by their content.
MOST_POINTS = 5_000
_Z = 1.959964  # 97.5 % quantile of the standard normal distribution

Interval = tuple[float, float]


@dataclass(frozen=True)
class NumbersEvaluation:
    """The numbers of one model on one set of images, in the unit of the labels. Intervals are of 95 %.

    Attributes:
        num_images: Their number.
        mae: Mean absolute error.
        rmse: Root of the mean squared error.
        median_absolute_error: Half of the images are nearer.
        mean_error: Of predicted less true: above 0 where the model says too much.
        r2: Share of the variance that is explained; not a number where all labels are the same.
        mean: Of the labels.
        deviation: Likewise their standard deviation.
        mae_interval: Of `mae`.
        rmse_interval: Of `rmse`.
        median_absolute_error_interval: Of `median_absolute_error`.
        mean_error_interval: Of `mean_error`.
        r2_interval: Of `r2`.
    """

    num_images: int
    mae: float
    rmse: float
    median_absolute_error: float
    mean_error: float
    r2: float
    mean: float
    deviation: float
    mae_interval: Interval
    rmse_interval: Interval
    median_absolute_error_interval: Interval
    mean_error_interval: Interval
    r2_interval: Interval

    @property
    def in_words(self) -> dict[str, tuple[float, Interval]]:
        """The numbers and their intervals, by their names for a person."""
        return {
            "MAE": (self.mae, self.mae_interval),
            "RMSE": (self.rmse, self.rmse_interval),
            "R2": (self.r2, self.r2_interval),
            "median absolute error": (self.median_absolute_error, self.median_absolute_error_interval),
            "mean error": (self.mean_error, self.mean_error_interval),
        }

    def to_dict(self) -> dict[str, object]:
        """The same as dicts, lists and finite numbers, which JSON can hold; null where undefined."""
        return {"kind": "regression", **{name: _finite(value) for name, value in asdict(self).items()}}


def evaluate(table: DataFrame) -> NumbersEvaluation:
    """Sum, on the cluster, how far predictions are from what is true.

    Args:
        table: With the columns `value` and `predicted_value` of `schema.EVALUATED_NUMBERS`; it is read three times.

    Raises:
        SeedlingsError: A prediction is not a finite number.
    """
    number, mean, bias, mae, squared = _means(table)
    true, _, error = _columns()
    half = _Z * math.sqrt(number) / 2
    ranks = [max(0.0, 0.5 - half / max(1, number)), 0.5, min(1.0, 0.5 + half / max(1, number))]
    spread = _squared(true - F.lit(mean))
    (found,) = table.agg(
        F.avg(spread),
        _variance(error, bias),
        _variance(F.abs(error), mae),
        _variance(_squared(error), squared),
        F.percentile(F.abs(error), F.array(*map(F.lit, ranks))),
    ).collect()
    variance, of_error, of_mae, of_squares = (math.nan if each is None else float(each) for each in found[:4])
    low, median, high = found[4] or [math.nan] * 3
    r2, of_r2 = math.nan, math.nan
    if variance > 0:
        r2 = 1 - squared / variance
        ((its,),) = table.agg(_variance(_squared(error) - F.lit(1 - r2) * spread, 0.0)).collect()
        of_r2 = its / variance**2

    def around(value: float, its: float) -> Interval:
        wide = _Z * math.sqrt(its / max(1, number))
        return value - wide, value + wide

    least, most = around(squared, of_squares)
    return NumbersEvaluation(
        number,
        mae,
        math.sqrt(squared),
        median,
        bias,
        r2,
        mean,
        math.sqrt(variance),
        around(mae, of_mae),
        (math.sqrt(max(0.0, least)), math.sqrt(most)),
        (low, high),
        around(bias, of_error),
        around(r2, of_r2),
    )


def _means(table: DataFrame) -> tuple[int, float, float, float, float]:
    """How many images there are; means of what is true, of the error, of its absolute value and of its square.

    Raises:
        SeedlingsError: As for `evaluate`.
    """
    true, predicted, error = _columns()
    wrong = predicted.isNull() | ~(F.abs(predicted) < F.lit(math.inf))
    means = (F.avg(each) for each in (true, error, F.abs(error), _squared(error)))
    ((number, num_wrong, *found),) = table.agg(F.count("*"), F.count_if(wrong), *means).collect()
    if num_wrong:
        raise SeedlingsError(
            f"{num_wrong:,} of {number:,} images with a prediction that is not a finite number",
            "numbers",
            "Train the model anew: its weights are not finite",
        )
    mean, bias, mae, squared = (math.nan if each is None else float(each) for each in found)
    return int(number), mean, bias, mae, squared


def points(table: DataFrame, num_images: int) -> list[tuple[float, float]]:
    """(true, predicted) of the images that are drawn: all, or about `MOST_POINTS` of them.

    Args:
        table: As for `evaluate`.
        num_images: How many it has.
    """
    chosen = table.where(is_sampled(MOST_POINTS / max(1, num_images)))
    chosen = chosen.select(schema.VALUE, schema.PREDICTED_VALUE)
    return [(float(row[0]), float(row[1])) for row in chosen.collect()]


def _columns() -> tuple[Column, Column, Column]:
    """What is true, what is predicted, and the error."""
    true, predicted = F.col(schema.VALUE), F.col(schema.PREDICTED_VALUE).cast("double")
    return true, predicted, predicted - true


def _squared(value: Column) -> Column:
    return value * value


def _variance(value: Column, mean: float) -> Column:
    """Of a sample; the mean is known, so that large numbers do not cancel."""
    return F.sum(_squared(value - F.lit(mean))) / F.greatest(F.count("*") - 1, F.lit(1))


def _finite(value: object) -> object:
    if isinstance(value, tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
