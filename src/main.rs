//! The program: command line in, exit status out. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(panic = "unwind")]
    end_at_a_panic();
    ringkeep::cli::run()
}

/// Makes a panic end the process in the profiles that unwind, as it does in a release: unwinding through a ring with
/// operations in flight frees buffers that the kernel still writes.
#[cfg(panic = "unwind")]
fn end_at_a_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
