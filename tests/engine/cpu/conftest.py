from native_fixtures import compiler, library  # noqa: F401
