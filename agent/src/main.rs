//! The `agent` program: its command line is `cli`.

fn main() -> std::process::ExitCode {
    agent::main()
}
