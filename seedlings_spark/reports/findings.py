"""What an evaluation found beside the numbers of its confusion matrix."""

from dataclasses import asdict, dataclass

from seedlings_spark.reports.certainty import Certainty
from seedlings_spark.reports.gallery import Gallery
from seedlings_spark.reports.paired import Comparison
from seedlings_spark.reports.projector import Projection
from seedlings_spark.reports.promised import Promised
from seedlings_spark.reports.robustness import Robustness
from seedlings_spark.reports.slices import Slices


@dataclass(frozen=True)
class Findings:
    """What an evaluation found besides; what is None was not looked for, or cannot be known.

    Attributes:
        certainty: Counts of probabilities; None of a pipeline that gives none.
        comparison: Beside the current version.
        not_compared: Why there is no comparison.
        gallery: Pictures to look at.
        promised: What became of the version's promises; None of one that has made none.
        robustness: Accuracy on corrupted pictures.
        adversarial: Accuracy on attacked pictures.
        projection: Pictures as points.
        slices: Accuracy on parts of the split.
    """

    certainty: Certainty | None = None
    comparison: Comparison | None = None
    not_compared: str = ""
    gallery: Gallery | None = None
    promised: Promised | None = None
    robustness: Robustness | None = None
    adversarial: Robustness | None = None
    projection: Projection | None = None
    slices: Slices | None = None

    def to_dict(self) -> dict[str, object]:
        """Their numbers, as JSON can hold them."""
        found: dict[str, object] = {}
        if self.certainty is not None:
            known = self.certainty
            found["top_k"] = {str(k): known.top(k) for k in (3, 5) if k < len(known.ranks)}
            found["calibration_error"] = known.calibration_error
            found["reliability"] = [asdict(each) for each in known.reliability if each.num_images]
        if self.promised is not None:
            found["decisions"] = self.promised.to_dict()
        if self.robustness is not None:
            found["robustness"] = self.robustness.to_dict()
        if self.adversarial is not None:
            numbers = self.adversarial.to_dict()
            found["adversarial"] = {name: numbers[name] for name in ("images", "accuracy", "kinds")}
        if self.slices is not None:
            found["slices"] = self.slices.to_dict()
        if self.comparison is not None:
            found["comparison"] = self.comparison.to_dict()
        elif self.not_compared:
            found["comparison"] = {"missing": self.not_compared}
        return found
