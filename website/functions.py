"""Functions that share their name with a file, as `gnfast.plan.trace`: the documentation is the function's."""

from typing import Any

from griffe import Extension, Function, Module


class FunctionsBeforeFiles(Extension):
    """Puts a function of an `__init__.py` back where the module of the same name has taken its place."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[Function] = []

    def on_function_instance(self, *, func: Function, **_: Any) -> None:
        """Called for each function before the files beside it are read."""
        if isinstance(func.parent, Module) and func.parent.is_init_module:
            self._found.append(func)

    def on_package(self, **_: Any) -> None:
        """Called when all of a package was read."""
        for function in self._found:
            file = function.parent.members[function.name]
            function.parent.members[function.name] = function
            if file is not function:
                # Other names of it were looked up before.
                for alias in [*file.aliases.values()]:
                    alias.target = function
