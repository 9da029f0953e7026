//! Tries a server that knows nothing of this suite: see [`handover_conformance::smoke`].

fn main() -> std::process::ExitCode {
    handover_conformance::smoke::main()
}
