"""The operations that the passes know, a file per family. Importing a file registers what it records."""

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
