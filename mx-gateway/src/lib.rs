//! The mx-gateway service.
