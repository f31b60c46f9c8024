"""What the jobs do, as calls: from a corpus to a published version, its evaluation, the folders of runs."""
