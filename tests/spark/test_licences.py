"""What `pack` ships may be passed on: its licences are listed, and no GPL is among them."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from seedlings_spark.cluster import environment


def test_no_package_that_travels_is_under_the_gpl() -> None:
    shipped = {each.partition("==")[0].removesuffix("-cpu") for each in environment.pinned()}
    folders = {str(metadata.distribution(name).locate_file("")) for name in shipped}
    installed = {
        name.split()[0]: licence
        for folder in folders
        for name, licence in environment.licences(Path(folder)).items()
    }
    ours = {name: installed[name] for name in shipped}
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json", "--with-system"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    theirs = {canonicalize_name(each["Name"]): each["License"] for each in listed}
    # Of namex only a file says it: the Apache License 2.0.
    assert {name for name in shipped if ours[name] != theirs[name]} == {"namex"}
    assert theirs["namex"] == "UNKNOWN" and ours["namex"] == "in its files only"
    gpl = re.compile("GPL|General Public|Affero")
    assert not {name: licence for name, licence in ours.items() if gpl.search(licence)}
