import pytest

from qmig_e2k import MigrationError
from qmig_e2k.migration.settings import Settings


@pytest.mark.parametrize(
    ("text", "look", "expected"),
    [
        ("migration.send-configuration=off", lambda s: s.profile.configuration, False),
        ("migration.send-section-footer=off", lambda s: s.profile.footers, False),
        ("migration.store-global-state=no", lambda s: s.profile.global_state, False),
        ("migration.send-switchover-start=false", lambda s: s.profile.send_switchover_start, False),
        ("migration.only-migratable=on", lambda s: s.only_migratable, True),
        ("migration.x-events=on", lambda s: s.capabilities["events"], True),
        ("migration.return-path=on", lambda s: s.capabilities["return-path"], True),
        ("migration.max-bandwidth=1G", lambda s: s.parameters["max-bandwidth"], 1 << 30),
        ("migration.x-downtime-limit=20", lambda s: s.parameters["downtime-limit"], 20),
        ("migration.multifd-compression=zstd", lambda s: s.parameters["multifd-compression"], "zstd"),
        ("migration.cpu-throttle-tailslow=on", lambda s: s.parameters["cpu-throttle-tailslow"], True),
    ],
)
def test_globals(text, look, expected):
    settings = Settings()
    assert look(settings) != expected
    settings.apply_global(text)
    assert look(settings) == expected


@pytest.mark.parametrize(
    "text",
    [
        "migration.send-configuration",
        "send-configuration=off",
        "e2k.send-configuration=off",
        "migration.events=maybe",
        "migration.downtime-limit=20ms",
        "migration.max-bandwidth=fast",
        "migration.no-such=on",
        "migration.x-colo=on",
    ],
)
def test_bad_globals_name_themselves(text):
    settings = Settings()
    with pytest.raises(MigrationError, match=text.removeprefix("migration.").split("=", maxsplit=1)[0]):
        settings.apply_global(text)
    assert settings.capabilities.enabled == []


def test_the_order_of_globals_does_not_matter():
    settings = Settings()
    settings.apply_global("migration.max-cpu-throttle=15", "migration.cpu-throttle-initial=10")
    assert settings.parameters["max-cpu-throttle"] == 15
