//! The `server` program: its command line is `cmd`.

fn main() -> std::process::ExitCode {
    server::cmd::main()
}
