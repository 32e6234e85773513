"""What is installed is what stands here: `package-data` names every file that is no module."""

import tomllib

from tests.support.processes import REPOSITORY

PACKAGES = ("celery_trace", "flower_plugin", "django_bridge")


def test_every_file_of_the_packages_is_installed():
    configuration = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    compiled = {REPOSITORY / source for module in configuration["ext-modules"] for source in module["sources"]}
    left_out = []
    for name in PACKAGES:
        package = REPOSITORY / name
        named = {path for pattern in configuration["package-data"][name] for path in package.glob(pattern)}
        for path in package.rglob("*"):
            if path.is_dir() or "__pycache__" in path.parts or path in compiled or path.suffix == ".so":
                continue
            module = path.suffix == ".py" and all(
                (folder / "__init__.py").exists() for folder in path.parents if folder.is_relative_to(package)
            )
            # setuptools passes over names that begin with a dot.
            if (not module and path not in named) or path.name.startswith("."):
                left_out.append(str(path.relative_to(REPOSITORY)))
    assert left_out == []


def test_the_extension_modules_may_be_left_out_and_have_their_source():
    modules = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    assert [module["name"] for module in modules] == [
        "celery_trace.heap._sampler",
        "celery_trace.heap._referrers",
        "celery_trace.process._open_runs",
        "celery_trace.runtime._messages",
        "celery_trace.process._thread_state",
    ]
    for module in modules:
        assert module["optional"]
        assert all((REPOSITORY / source).is_file() for source in module["sources"])
