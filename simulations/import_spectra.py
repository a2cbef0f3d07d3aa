"""Add a world's emission spectra to its Zarr cube (needs the `dev` extra). Run after `import_worlds.py`.

    python simulations/import_spectra.py SOURCE_FOLDER [TARGET_FOLDER]

Only the world "earthlike" has spectra: clear-sky emission of its zonal-mean columns, see the manifest. Fluxes are
rounded to seven bits of mantissa (0.4 %), far below what their own approximations are worth, so that they compress.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astrofed.client.data.contract import AXES
from astrofed.client.data.cube import open_group, read_cube, read_variable
from astrofed.client.data.emission import EMISSION, NAMES, WAVELENGTH, read_emission

WORLD = "earthlike"
BITS = 7


def add_spectra(source: Path, cube: Path) -> None:
    """Add `emission` and `wavelength` of a NetCDF file to the group `cube`; what is there of them is replaced.

    Raises:
        FileNotFoundError, KeyError, ValueError: the source is not what this script was written for.
        DataMistake: the cube can't be read.
    """
    import xarray
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    latitudes = read_variable(open_group(cube), AXES["lat"], cube)
    with xarray.open_dataset(source, engine="h5netcdf", decode_times=False) as data:
        flux = data["emission_flux"].transpose(*EMISSION.dims)
        if flux.attrs["units"] != EMISSION.unit.name:
            raise ValueError(f"{source}: emission_flux is in {flux.attrs['units']!r}, expected {EMISSION.unit.name!r}")
        if not np.allclose(data["lat"].to_numpy(), latitudes, atol=1e-3):
            raise ValueError(f"{source}: its latitudes are not those of {cube}")
        values = rounded(flux.to_numpy().astype(np.float64))
        wavelength = data["wavelength"].to_numpy().astype(np.float64)
    for name in NAMES:
        shutil.rmtree(cube / name, ignore_errors=True)
    group = zarr.open_group(cube, mode="r+", zarr_format=3, use_consolidated=False)
    with zarr.config.set({"array.write_empty_chunks": True}):
        for variable, array in ((WAVELENGTH, wavelength.astype(np.float32)), (EMISSION, values)):
            written = group.create_array(
                variable.name,
                shape=array.shape,
                dtype=array.dtype,
                chunks=array.shape,
                compressors=[BloscCodec(cname="zstd", clevel=9, shuffle="shuffle", typesize=4), Crc32cCodec()],
                fill_value=float("nan"),
                dimension_names=variable.dims,
                chunk_key_encoding={"name": "default", "separator": "."},
                attributes={"units": variable.unit.name, "standard_name": variable.standard_name},
            )
            written[...] = array


def rounded(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return values to `BITS` bits of mantissa; fluxes that no photon carries away in a second (below 1e-20) are 0."""
    mantissa, exponent = np.frexp(values)
    found = np.ldexp(np.round(mantissa * 2.0**BITS) / 2.0**BITS, exponent)
    return np.where(values < 1e-20, 0.0, found).astype(np.float32)


def main(arguments: list[str]) -> int:
    """Add the spectra; print the world, its fingerprint (unchanged) and the bytes that they take."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?", default=Path(__file__).parent / "data" / "worlds")
    given = parser.parse_args(arguments)
    path = given.target / f"{WORLD}.zarr"
    add_spectra(given.source / f"exoplasim_{WORLD}_spectra.nc", path)
    cube = read_cube(path)
    if read_emission(path, cube) is None:
        raise ValueError(f"{path}: the spectra can't be found after they were written")
    size = sum(file.stat().st_size for name in NAMES for file in (path / name).rglob("*") if file.is_file())
    sys.stdout.write(f"{WORLD} {cube.fingerprint} {size}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
