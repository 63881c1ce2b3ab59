"""What a stream consists of besides RAM: handlers, their order, configuration and globalstate."""

from qmig_e2k.savevm.clock import VirtualClock, timer_description
from qmig_e2k.savevm.configuration import Configuration, check_configuration, stream_head, stream_tail
from qmig_e2k.savevm.globalstate import GlobalState
from qmig_e2k.savevm.handlers import Handler, RamHandler, SaveVmHandler, VmStateHandler
from qmig_e2k.savevm.profile import Profile
from qmig_e2k.savevm.registry import Entry, LoadRules, Registry
from qmig_e2k.savevm.sections import (
    SavedDevices,
    describe_exception,
    end_section,
    guarded,
    load_section,
    part_section,
    save_full,
    start_section,
    timed,
)

__all__ = [
    "Configuration",
    "Entry",
    "GlobalState",
    "Handler",
    "LoadRules",
    "Profile",
    "RamHandler",
    "Registry",
    "SaveVmHandler",
    "SavedDevices",
    "VirtualClock",
    "VmStateHandler",
    "check_configuration",
    "describe_exception",
    "end_section",
    "guarded",
    "load_section",
    "part_section",
    "save_full",
    "start_section",
    "stream_head",
    "stream_tail",
    "timed",
    "timer_description",
]
