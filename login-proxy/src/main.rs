//! The login-proxy service's command line.
fn main() {}
