"""One file per method. A scorer is a plain callable for `datasets.map`."""
