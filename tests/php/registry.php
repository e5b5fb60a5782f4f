<?php

/**
 * Writes and reads the registry of services in Redis.
 *
 *   php registry.php REDIS_URL register SERVICE ID HOST PORT     prints `registered`
 *   php registry.php REDIS_URL heartbeat SERVICE ID              prints `heartbeat`
 *   php registry.php REDIS_URL list SERVICE                      prints the ids alive, a JSON array
 *   php registry.php REDIS_URL deregister SERVICE ID             prints `deregistered`
 */

declare(strict_types=1);

ini_set('display_errors', 'stderr');
ini_set('log_errors', '0');

const KEY_EXPIRY = 300;
const ALIVE_FOR = 60;

/** Connects to redis://user:password@host:port/database. */
function connectRedis(string $url): Redis
{
    $parts = parse_url($url);
    $redis = new Redis();
    $redis->connect($parts['host'], $parts['port'] ?? 6379, 3.0);
    if (isset($parts['pass'])) {
        $user = rawurldecode($parts['user'] ?? '');
        $password = rawurldecode($parts['pass']);
        $redis->auth($user === '' ? $password : [$user, $password]);
    }
    $database = (int) substr($parts['path'] ?? '', 1);
    if ($database !== 0) {
        $redis->select($database);
    }

    return $redis;
}

function register(Redis $redis, string $key, string $id, string $host, string $port): void
{
    $now = time();
    $instance = [
        'instance_id' => $id,
        'registered_at' => $now,
        'last_heartbeat' => $now,
        'host' => $host,
        'port' => (int) $port,
    ];
    $redis->hSet($key, $id, json_encode($instance));
    $redis->expire($key, KEY_EXPIRY);
}

/**
 * As the PHP services in use do it, faults and all: the key's expiry is not renewed,
 * and an instance that has left comes back.
 */
function heartbeat(Redis $redis, string $key, string $id): void
{
    $now = time();
    $value = $redis->hGet($key, $id);
    $instance = is_string($value) ? json_decode($value, true) : null;
    if (!is_array($instance)) {
        $instance = ['instance_id' => $id, 'registered_at' => $now];
    }
    $instance['last_heartbeat'] = $now;
    $redis->hSet($key, $id, json_encode($instance));
}

/** @return string[] */
function alive(Redis $redis, string $key): array
{
    $ids = [];
    foreach ($redis->hGetAll($key) ?: [] as $id => $value) {
        $instance = json_decode($value, true);
        $last = is_array($instance) ? $instance['last_heartbeat'] ?? 0 : 0;
        if (is_numeric($last) && time() - $last < ALIVE_FOR) {
            $ids[] = (string) $id; // PHP makes a number of a numeric key
        }
    }
    sort($ids, SORT_STRING);

    return $ids;
}

$command = $argv[2] ?? '';
$wanted = ['register' => 7, 'heartbeat' => 5, 'list' => 4, 'deregister' => 5];
if ($argc !== ($wanted[$command] ?? 0)) {
    $text = 'usage: registry.php REDIS_URL'
        . " (register SERVICE ID HOST PORT | heartbeat SERVICE ID | list SERVICE | deregister SERVICE ID)\n";
    fwrite(STDERR, $text);
    exit(2);
}

$redis = connectRedis($argv[1]);
$key = 'service:registry:' . $argv[3];

switch ($command) {
    case 'register':
        register($redis, $key, $argv[4], $argv[5], $argv[6]);
        $answer = 'registered';
        break;
    case 'heartbeat':
        heartbeat($redis, $key, $argv[4]);
        $answer = 'heartbeat';
        break;
    case 'list':
        $answer = json_encode(alive($redis, $key));
        break;
    case 'deregister':
        $redis->hDel($key, $argv[4]);
        $answer = 'deregistered';
        break;
}

// An error that Redis answers is only a false for php-redis.
if ($redis->getLastError() !== null) {
    fwrite(STDERR, $redis->getLastError() . "\n");
    exit(1);
}
fwrite(STDOUT, $answer . "\n");
