//! Notes the compiler's version, which the report prints.

use std::process::Command;

fn main() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok());
    println!("cargo:rustc-env=PEERS_RUSTC={}", version.as_deref().unwrap_or("unknown").trim());
    println!("cargo:rerun-if-changed=build.rs");
}
