from native_fixtures import compiler, library, several_threads  # noqa: F401
