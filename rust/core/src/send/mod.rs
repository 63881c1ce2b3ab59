//! The source: page search, RAM saver, switchover, fence and commit.
