//! The login-proxy service.
