//! The model guest: deterministic vCPU threads that read and write RAM, and the verifier that replays them.
