from native_fixtures import library  # noqa: F401
