"""Types that the files of two runs can be read with together."""

import pytest
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    ByteType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructType,
    TimestampType,
)

from seedlings_spark import schema


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (IntegerType(), LongType(), LongType()),
        (ByteType(), DoubleType(), DoubleType()),
        (FloatType(), DoubleType(), DoubleType()),
        (LongType(), DoubleType(), None),  # 2**53 + 1 is no double
        (IntegerType(), FloatType(), None),  # 2**24 + 1 is no float
        (StringType(), IntegerType(), None),
        (BooleanType(), IntegerType(), None),
        (DateType(), TimestampType(), None),
        (DecimalType(10, 2), DecimalType(8, 4), DecimalType(12, 4)),
        (DecimalType(38, 0), DecimalType(38, 10), None),
        (ArrayType(IntegerType(), False), ArrayType(LongType()), ArrayType(LongType())),
        (MapType(StringType(), IntegerType()), MapType(LongType(), IntegerType()), None),
        (
            StructType().add("a", IntegerType(), False).add("b", StringType()),
            StructType().add("A", LongType()).add("c", StringType()),
            StructType().add("a", LongType()).add("b", StringType()).add("c", StringType()),
        ),
        (StructType().add("a", IntegerType()), StructType().add("a", StringType()), None),
    ],
)
def test_two_types_have_one_that_holds_all_values_of_both_or_none(
    one: DataType, other: DataType, expected: DataType | None
) -> None:
    assert schema.widened(one, other) == expected
    if expected is None or not isinstance(expected, StructType):
        assert schema.widened(other, one) == expected


def test_a_quoted_name_is_one_name_whatever_is_in_it() -> None:
    assert schema.quoted("camera.id") == "`camera.id`"
    assert schema.quoted("a `tick`") == "`a ``tick```"
