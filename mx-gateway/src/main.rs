//! The mx-gateway service's command line.
fn main() {}
