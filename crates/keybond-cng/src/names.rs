//! Names and numbers that Windows fixes (`ncrypt.h`, `bcrypt.h` of the Windows SDK).

/// The key storage provider that keeps keys in the user's profile, and KeyGuard keys in the VBS enclave.
pub const SOFTWARE_PROVIDER: &str = "Microsoft Software Key Storage Provider";
/// The key storage provider that keeps keys in the TPM.
pub const PLATFORM_PROVIDER: &str = "Microsoft Platform Crypto Provider";

/// Property: size of the key in bits (DWORD).
pub const LENGTH: &str = "Length";
/// Property: which exports are allowed (DWORD, 0 = none).
pub const EXPORT_POLICY: &str = "Export Policy";
/// Property: what the key may be used for (DWORD).
pub const KEY_USAGE: &str = "Key Usage";
/// Property: whether the key is isolated by virtualization-based security (DWORD, 0 = no).
pub const VIRTUAL_ISOLATION: &str = "Virtual Iso";
/// Property: whether the key dies with this boot (DWORD, 0 = no).
pub const PER_BOOT: &str = "Per Boot Key";
/// Property of a provider or key: what implements it (DWORD of `IMPL_*` bits).
pub const IMPLEMENTATION: &str = "Impl Type";
/// Property of a platform key: which PSS salt its TPM makes (DWORD, `SALT_*`).
pub const PSS_SALT_SIZE: &str = "PSS Salt Size";

/// Bit of [`IMPLEMENTATION`]: a hardware device (`NCRYPT_IMPL_HARDWARE_FLAG`).
pub const IMPL_HARDWARE: u32 = 0x01;
/// Bit of [`IMPLEMENTATION`]: software (`NCRYPT_IMPL_SOFTWARE_FLAG`).
pub const IMPL_SOFTWARE: u32 = 0x02;
/// Bit of [`IMPLEMENTATION`]: virtual isolation (`NCRYPT_IMPL_VIRTUAL_ISOLATION_FLAG`).
pub const IMPL_VIRTUAL_ISOLATION: u32 = 0x20;

/// Value of [`PSS_SALT_SIZE`]: as long as fits (`NCRYPT_TPM_PSS_SALT_SIZE_MAXIMUM`), which nobody accepts.
pub const SALT_MAXIMUM: u32 = 1;
/// Value of [`PSS_SALT_SIZE`]: as long as the hash (`NCRYPT_TPM_PSS_SALT_SIZE_HASHSIZE`).
pub const SALT_HASH_SIZE: u32 = 2;

/// Flag of a create call: replace a key of the same name (`NCRYPT_OVERWRITE_KEY_FLAG`).
pub const OVERWRITE: u32 = 0x80;
/// Flag of a create call: isolate the key by VBS or fail (`NCRYPT_USE_VIRTUAL_ISOLATION_FLAG`).
pub const USE_VIRTUAL_ISOLATION: u32 = 0x2_0000;
/// Flag of a create call: the key dies with this boot (`NCRYPT_USE_PER_BOOT_KEY_FLAG`).
pub const USE_PER_BOOT: u32 = 0x4_0000;

/// Value of [`KEY_USAGE`]: signatures only (`NCRYPT_ALLOW_SIGNING_FLAG`).
pub const USAGE_SIGNING: u32 = 0x2;
/// Value of [`KEY_USAGE`]: everything (`NCRYPT_ALLOW_ALL_USAGES`).
pub const USAGE_ALL: u32 = 0x00ff_ffff;
