"""What can be wrong with a dataset: one class a mistake, the message names file, thing, value and mend."""

from astrofed.shared.errors import UserMistake


class DataMistake(UserMistake):
    """A dataset that can't be used as it is."""


class CubeMissing(DataMistake):
    """There is no Zarr v3 group at the path."""


class CubeCorrupt(DataMistake):
    """A chunk is damaged or absent, or metadata can't be read."""


class CubeExists(DataMistake):
    """Something stands where a cube should be written."""


class MissingVariable(DataMistake):
    """A required variable or coordinate is not in the cube."""


class WrongDimensions(DataMistake):
    """A variable's dimension names, their order or their lengths are not the contract's."""


class WrongCoordinates(DataMistake):
    """A coordinate is not strictly monotonic or out of its range."""


class WrongUnits(DataMistake):
    """A variable declares no unit, or one that can't be converted to the contract's."""


class NotFinite(DataMistake):
    """A variable holds NaN or infinity."""


class Unphysical(DataMistake):
    """A variable holds values that no world has, such as a negative pressure."""


class PlanetIncomplete(DataMistake):
    """The planet's constants are missing or not positive numbers."""


class TableMissing(DataMistake):
    """There is no file at the path."""


class TableCorrupt(DataMistake):
    """The file is not Parquet, or is damaged."""


class TableExists(DataMistake):
    """Something stands where a table should be written."""


class MissingColumn(DataMistake):
    """A column that is asked for is not in the table."""


class WrongColumnType(DataMistake):
    """A column holds neither numbers nor text."""


class TooFewRows(DataMistake):
    """The table has fewer rows than asked for."""


class WrongContract(DataMistake):
    """The table's contract (units, privacy unit and its key) is absent or contradicts the columns."""


class UnknownDatasetKind(DataMistake):
    """The path is neither a Zarr v3 cube nor a Parquet table."""
