<?php

/**
 * Calls a service, sends it a command, or publishes an event.
 *
 *   php client.php AMQP_URL SOURCE TARGET ACTION JSON            prints the reply's body, or `timeout`
 *   php client.php AMQP_URL SOURCE TARGET ACTION JSON --async    the same with an async call
 *   php client.php AMQP_URL SOURCE TARGET ACTION JSON --send     a command: prints `sent`
 *   php client.php AMQP_URL SOURCE TARGET ACTION JSON --direct   a call by RabbitMQ's direct reply-to
 *   php client.php AMQP_URL SOURCE --event NAME JSON             prints `published`
 */

declare(strict_types=1);

require_once __DIR__ . '/common.php';

use PhpAmqpLib\Channel\AMQPChannel;
use PhpAmqpLib\Exception\AMQPTimeoutException;
use PhpAmqpLib\Message\AMQPMessage;

const REPLY_TIMEOUT = 10.0;

/** Returns the body of the reply, or null when none came in time. */
function call(AMQPChannel $channel, array $request, bool $async, bool $direct): ?string
{
    $queue = 'amq.rabbitmq.reply-to';
    if (!$direct) {
        [$queue] = $channel->queue_declare('', false, false, true, true);
    }
    $request['reply_to'] = $queue;
    if ($async) {
        $request['headers'] = ['async_callback' => true];
    }

    $reply = null;
    $channel->basic_consume(
        $queue,
        '',
        false,
        true,
        false,
        false,
        function (AMQPMessage $message) use (&$reply, $request): void {
            // get() throws when the property is not there.
            if ($message->has('correlation_id') && $message->get('correlation_id') === $request['correlation_id']) {
                $reply = $message->getBody();
            }
        }
    );
    $key = 'request.' . $request['target_service'];
    $channel->basic_publish(toMessage($request, !$async), SERVICE_EXCHANGE, $key);

    $end = microtime(true) + REPLY_TIMEOUT;
    while ($reply === null) {
        $left = $end - microtime(true);
        if ($left <= 0) { // wait() takes 0 for "for ever"
            return null;
        }
        try {
            $channel->wait(null, false, $left);
        } catch (AMQPTimeoutException) {
            return null;
        }
    }

    return $reply;
}

$options = array_values(array_intersect($argv, ['--async', '--send', '--event', '--direct']));
$arguments = array_values(array_diff($argv, $options));
$option = $options[0] ?? null;
if (count($options) > 1 || count($arguments) !== ($option === '--event' ? 5 : 6)) {
    usage('client.php AMQP_URL SOURCE (TARGET ACTION JSON [--async | --send | --direct] | --event NAME JSON)');
}
$json = array_pop($arguments);
$action = array_pop($arguments);
[, $url, $source] = $arguments;
$target = $arguments[3] ?? '';

// As arrays, so an empty object is sent as [].
$payload = json_decode($json, true, 512, JSON_THROW_ON_ERROR);
$envelope = envelope($source, $target, $action, $payload);

$connection = connect($url);
$channel = $connection->channel();
$status = 0;

switch ($option) {
    case '--event':
        declareExchange($channel, EVENT_EXCHANGE, 'topic');
        $channel->basic_publish(toMessage($envelope, true), EVENT_EXCHANGE, $action);
        say('published');
        break;
    case '--send':
        declareExchange($channel, SERVICE_EXCHANGE, 'direct');
        $channel->basic_publish(toMessage($envelope, true), SERVICE_EXCHANGE, "request.$target");
        say('sent');
        break;
    default:
        declareExchange($channel, SERVICE_EXCHANGE, 'direct');
        $reply = call($channel, $envelope, $option === '--async', $option === '--direct');
        say($reply ?? 'timeout');
        $status = $reply === null ? 1 : 0;
}

$channel->close();
$connection->close();
exit($status);
