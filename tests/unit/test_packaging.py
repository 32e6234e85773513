"""What is installed is what stands here: `package-data` names every file that is no module."""

import tomllib

from tests.support.processes import REPOSITORY

PACKAGES = ("celery_trace", "flower_plugin", "django_bridge")


def test_every_file_of_the_packages_is_installed():
    configuration = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    left_out = []
    for name in PACKAGES:
        package = REPOSITORY / name
        named = {path for pattern in configuration["package-data"][name] for path in package.glob(pattern)}
        for path in package.rglob("*"):
            if path.is_dir() or "__pycache__" in path.parts:
                continue
            module = path.suffix == ".py" and all(
                (folder / "__init__.py").exists() for folder in path.parents if folder.is_relative_to(package)
            )
            # setuptools passes over names that begin with a dot.
            if (not module and path not in named) or path.name.startswith("."):
                left_out.append(str(path.relative_to(REPOSITORY)))
    assert left_out == []
